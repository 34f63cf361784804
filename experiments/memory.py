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
from experiments.minimisation import backpropagated, make_step

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
    """What a step's temporaries may take."""
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


def layer(x: jax.Array, weight: jax.Array, depth: int) -> jax.Array:
    """A residual tanh layer, normalised over the batch."""
    z = x @ weight
    z = (z - jnp.mean(z, 0)) / jnp.sqrt(jnp.var(z, 0) + 1e-5)
    return x + jnp.tanh(z) / depth**0.5


def make_loss(depth: int, segments: tuple[int, ...] = ()) -> Callable:
    """Mean logistic loss of a network of ``depth`` layers.

    Args:
      depth: number of layers.
      segments: how many checkpointed segments the network is cut into, how many each of
        these, and so on; their product is the depth. By default no checkpoints.
    """

    def body(x, weight):
        return layer(x, weight, depth), None

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
    adam = optax.chain(backpropagated(), optax.adam(0.01))
    root, fours = round(depth**0.5), round(np.log2(depth) / 2)
    plane = fomoh_jax.fomoh_kd(2, 1.0, solver=fomoh_jax.solvers.saddle_free())
    return {
        "Adam": (make_loss(depth), adam),
        "Adam, every layer checkpointed": (make_loss(depth, (depth,)), adam),
        "Adam, checkpointed in √depth segments": (make_loss(depth, (root, root)), adam),
        FRUGAL: (make_loss(depth, (4,) * fours), adam),
        "FoMoH": (make_loss(depth), fomoh_jax.fomoh(1.0)),
        "FoMoH-2D": (make_loss(depth), plane),
    }


def compile_step(
    loss: Callable, tx: optax.GradientTransformation, params: Any, data: tuple
) -> Any:
    """One step, ``(params, state, inputs, labels) -> (params, state)``."""
    step = jax.jit(make_step(loss, tx))
    return step.lower(params, tx.init(params), *data).compile()


def megabytes(compiled: Any) -> float:
    """The temporary memory of a compiled program."""
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def measure(config: Config, data: tuple) -> pd.DataFrame:
    """Megabytes of a step of every method (rows) at each of the depths (columns)."""
    return pd.DataFrame(
        {
            depth: {
                name: megabytes(compile_step(loss, tx, params, data))
                for name, (loss, tx) in study.progress(make_steps(depth), "method")
            }
            for depth in config.depths
            for params in [initialise(jax.random.key(0), depth, config.width)]
        }
    )


def train(
    name: str, config: Config, data: tuple, steps: int, seeds: int
) -> tuple[np.ndarray, float]:
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


def draw(
    config: Config, sizes: pd.DataFrame, curves: dict[str, np.ndarray]
) -> plt.Figure:
    """Memory against depth, and the training of the deepest network."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    sizes.T.plot(ax=left, style="o-", logx=True, logy=True)
    left.axhline(config.budget_mb, color="black", ls="--", lw=1)
    where = config.depths[-1], 0.95 * config.budget_mb
    left.text(*where, "budget", va="top", ha="right")
    left.set(xlabel="layers", ylabel="temporary memory [MB]")
    left.set(title="one step of the optimiser")
    left.set_xticks(config.depths, config.depths)
    left.minorticks_off()
    for name, losses in curves.items():
        fits = "fits" if fit(config, sizes)[name] else "does not fit"
        style = {"label": f"{name} ({fits})", "color": f"C{sizes.index.get_loc(name)}"}
        plotting.plot_quartiles(right, np.arange(losses.shape[1]), losses, **style)
    title = f"{config.depths[-1]} layers, median and quartiles of {config.seeds} seeds"
    right.set(xlabel="iteration", ylabel="logistic loss", title=title)
    right.set_ylim(0, 1.1 * max(losses[:, 0].max() for losses in curves.values()))
    for axes in (left, right):
        axes.legend(fontsize=7.5)
        axes.grid(alpha=0.3)
    return figure


def fit(config: Config, sizes: pd.DataFrame) -> pd.Series:
    """Which methods train the deepest network within the budget."""
    return sizes[config.depths[-1]] <= config.budget_mb


def summary(
    config: Config,
    sizes: pd.DataFrame,
    curves: dict[str, np.ndarray],
    seconds: dict[str, float],
) -> str:
    """A row a method; the losses of those that trained."""
    frame = sizes.map("{:.2f}".format).add_prefix("MB, ").add_suffix(" layers")
    fits = fit(config, sizes).map({True: "yes", False: "no"})
    frame[f"fits {config.budget_mb:g} MB"] = fits
    frame["ms a step"] = [f"{1e3 * seconds[name]:.0f}" for name in sizes.index]
    losses = {
        name: {
            "first loss": study.mean_and_deviation(curve[:, 0]),
            "last loss": study.mean_and_deviation(curve[:, -1]),
            "steps": curve.shape[1] - 1,
        }
        for name, curve in curves.items()
    }
    frame = frame.join(pd.DataFrame.from_dict(losses, "index", dtype=object))
    return study.table(frame.rename_axis("method").reset_index())


def main(config: Config) -> None:
    """Measure, train what fits, and write what came out."""
    if not config.depths or not set(config.depths) <= {4**i for i in range(1, 9)}:
        raise SystemExit("--depths must be powers of 4, such as 16 64 256.")
    study.at_least(1, config, "steps", "seeds", "width", "batch")
    data = spirals(config.batch)
    sizes = measure(config, data)
    curves, seconds = {}, {}
    for name, fits in study.progress(fit(config, sizes), "method"):
        if fits or name == FRUGAL:
            # Adam is there in a quarter of the steps.
            steps = -(-config.steps // 4) if name == FRUGAL else config.steps
            run = train(name, config, data, steps, config.seeds)
            curves[name], seconds[name] = run
        else:  # a few steps, for their time
            seconds[name] = train(name, config, data, 5, 1)[1]
    text = summary(config, sizes, curves, seconds)
    study.write(config.out / "memory", text, memory=draw(config, sizes, curves))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
