"""Train a network that is too deep for reverse mode's memory.

    python -m experiments.memory --budget-mb 2.5

The temporary memory of an optimiser's step, as the compiler counts it, against depth:
backpropagation keeps every layer's activations, its checkpointed forms fewer of them
for further forward passes, FoMoH those of one layer. What fits the budget then trains
the deepest network, beside the most frugal of the backward passes.

The layers normalise over the batch, so that the batch cannot be cut into pieces whose
gradients are added up: that would give reverse mode all the memory it wants.

Writes ``memory.png`` and ``table.md`` into ``experiments/results/memory`` and prints
the table.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import tyro
from jax import lax

import fomoh_jax
from experiments import plotting, study
from experiments.minimisation import exact_gradient, make_step

FRUGAL = "Adam, checkpointed in fours of fours …"


@dataclasses.dataclass(frozen=True)
class Config:
    """A deep residual tanh network on two spirals, float32."""

    depths: tuple[int, ...] = (16, 64, 256)
    """Numbers of layers, powers of 4; the last one is trained."""
    width: int = 8
    """Features of every layer."""
    batch: int = 4096
    """Points of the two spirals."""
    budget_mb: float = 2.5
    """The temporary memory that a step may take."""
    steps: int = 80
    """Iterations of training."""
    seeds: int = 3
    """Random initialisations."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder memory."""


def spirals(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions ``[points, 2]`` on two arms, and which arm, ±1."""
    random = np.random.default_rng(0)
    arm = np.where(np.arange(points) % 2, 1.0, -1.0)
    radius = random.uniform(0.2, 1, points)
    angle = 4 * radius + np.pi * (arm > 0)
    place = radius * np.stack([np.cos(angle), np.sin(angle)])
    noise = 0.03 * random.standard_normal((points, 2))
    return (place.T + noise).astype(np.float32), arm.astype(np.float32)


def initialise(key: jax.Array, depth: int, width: int) -> dict[str, jax.Array]:
    """Weights that keep the variance of the stream."""
    keys = jax.random.split(key, 3)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape, jnp.float32)
    return {
        "first": normal(0, 2, width),
        "hidden": normal(1, depth, width, width) / width**0.5,
        "last": normal(2, width) / width,
    }


def make_loss(depth: int, segments: tuple[int, ...] = ()) -> Callable:
    """Mean logistic loss of a network of ``depth`` layers.

    Args:
      depth: number of layers.
      segments: how many checkpointed segments the network is cut into, how many each of
        these, and so on; their product is the depth. By default no checkpoints.
    """

    def body(x, weight):
        """A residual tanh layer, normalised over the batch."""
        z = x @ weight
        z = (z - jnp.mean(z, 0)) / jnp.sqrt(jnp.var(z, 0) + 1e-5)
        return x + jnp.tanh(z) / depth**0.5, None

    def checkpointed(x, weights):
        inner = body if weights.ndim == 3 else checkpointed
        return lax.scan(jax.checkpoint(inner), x, weights)[0], None

    def loss(params, inputs, labels):
        x, hidden = inputs @ params["first"], params["hidden"]
        if segments:
            x, _ = checkpointed(x, hidden.reshape(*segments, *hidden.shape[1:]))
        else:
            x, _ = lax.scan(body, x, hidden)
        return jnp.mean(jnp.logaddexp(0, -labels * (x @ params["last"])))

    return loss


def make_steps(depth: int) -> dict[str, tuple[Callable, optax.GradientTransformation]]:
    """``name -> (loss, optimiser)``."""
    adam = optax.chain(exact_gradient(), optax.adam(0.01))
    root, fours = round(depth**0.5), round(np.log2(depth) / 2)
    solver = fomoh_jax.solvers.saddle_free()
    plane = fomoh_jax.fomoh_kd(2, learning_rate=1.0, solver=solver)
    return {
        "Adam": (make_loss(depth), adam),
        "Adam, every layer checkpointed": (make_loss(depth, (depth,)), adam),
        "Adam, checkpointed in √depth segments": (make_loss(depth, (root, root)), adam),
        FRUGAL: (make_loss(depth, (4,) * fours), adam),
        "FoMoH": (make_loss(depth), fomoh_jax.fomoh(1.0)),
        "FoMoH-2D": (make_loss(depth), plane),
    }


def compile_step(loss: Callable, tx: Any, params: Any, data: tuple) -> Any:
    """One step, ``(params, state, inputs, labels) -> (params, state)``."""
    step = jax.jit(make_step(loss, tx))
    return step.lower(params, tx.init(params), *data).compile()


def megabytes(compiled: Any) -> float:
    """The temporary memory of a compiled program."""
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def measure(config: Config, data: tuple) -> pd.DataFrame:
    """Megabytes of a step of every method (rows) at each of the depths (columns)."""
    sizes = {}
    for depth in config.depths:
        params = initialise(jax.random.key(0), depth, config.width)
        sizes[depth] = {
            name: megabytes(compile_step(loss, tx, params, data))
            for name, (loss, tx) in study.progress(make_steps(depth), "method")
        }
    return pd.DataFrame(sizes)


def train(name: str, config: Config, data: tuple, steps: int, seeds: int) -> tuple:
    """Losses of the deepest network, ``[seeds, steps + 1]``, and seconds a step."""
    depth = config.depths[-1]
    loss, tx = make_steps(depth)[name]
    evaluate = jax.jit(make_loss(depth))
    start = lambda seed: initialise(jax.random.key(seed), depth, config.width)
    step = compile_step(loss, tx, start(0), data)
    curves, seconds = [], []
    for seed in range(seeds):
        params = start(seed)
        state, curve = tx.init(params), []
        for _ in range(steps):
            curve.append(float(evaluate(params, *data)))
            began = time.perf_counter()
            params, state = jax.block_until_ready(step(params, state, *data))
            seconds.append(time.perf_counter() - began)
        curves.append([*curve, float(evaluate(params, *data))])
    return np.array(curves), float(np.median(seconds))


def draw(config: Config, sizes: pd.DataFrame, curves: dict) -> plt.Figure:
    """Memory against depth, and the training of the deepest network."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    sizes.T.plot(ax=left, style="o-")
    left.axhline(config.budget_mb, color="black", ls="--", lw=1)
    place = {"va": "top", "ha": "right"}
    left.text(config.depths[-1], 0.95 * config.budget_mb, "budget", **place)
    labels = {"xlabel": "layers", "ylabel": "temporary memory [MB]"}
    plotting.dress(left, log="xy", title="one step of the optimiser", **labels)
    left.set_xticks(config.depths, config.depths)
    left.minorticks_off()
    for i, (name, size) in enumerate(sizes[config.depths[-1]].items()):
        if name in curves:
            fits = "fits" if size <= config.budget_mb else "does not fit"
            x, style = np.arange(curves[name].shape[1]), {"color": f"C{i}"}
            label = f"{name} ({fits})"
            plotting.plot_quartiles(right, x, curves[name], label=label, **style)
    title = f"{config.depths[-1]} layers, median and quartiles of {config.seeds} seeds"
    top = 1.1 * max(losses[:, 0].max() for losses in curves.values())
    labels = {"xlabel": "iteration", "ylabel": "logistic loss"}
    plotting.dress(right, title=title, ylim=(0, top), **labels)
    return figure


def main(config: Config) -> None:
    """Measure, train the methods that fit, and write the results."""
    if not config.depths or not set(config.depths) <= {4**i for i in range(1, 9)}:
        raise SystemExit("--depths must be powers of 4, such as 16 64 256.")
    study.at_least(1, config, "steps", "seeds", "width", "batch")
    data = spirals(config.batch)
    sizes = measure(config, data)
    rows, curves = [], {}
    for name, size in study.progress(sizes[config.depths[-1]], "method"):
        fits = size <= config.budget_mb
        row = {f"MB, {d} layers": f"{x:.2f}" for d, x in sizes.loc[name].items()}
        row[f"fits {config.budget_mb:g} MB"] = "yes" if fits else "no"
        # Adam needs a quarter of the steps. A method that does not fit takes a few, so
        # that they can be timed.
        steps = -(-config.steps // 4) if name == FRUGAL else config.steps
        trained = fits or name == FRUGAL
        count = (steps, config.seeds) if trained else (5, 1)
        losses, seconds = train(name, config, data, *count)
        row["ms a step"] = f"{1e3 * seconds:.0f}"
        if trained:
            curves[name] = losses
            row["first loss"] = study.mean_and_deviation(losses[:, 0])
            row["last loss"] = study.mean_and_deviation(losses[:, -1])
            row["steps"] = steps
        rows.append({"method": name} | row)
    figure = draw(config, sizes, curves)
    study.write(config.out / "memory", study.table(rows), memory=figure)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
