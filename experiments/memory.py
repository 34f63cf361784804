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
import tyro
from jax import lax
from tqdm import tqdm

import fomoh_jax
from experiments import plotting
from experiments.minimisation import backpropagated

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
    out: Path = Path("experiments/results")
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
    first, hidden, last = jax.random.split(key, 3)
    return {
        "first": jax.random.normal(first, (2, width), jnp.float32),
        "hidden": jax.random.normal(hidden, (depth, width, width), jnp.float32)
        / width**0.5,
        "last": jax.random.normal(last, (width,), jnp.float32) / width,
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
        FRUGAL: (
            make_loss(depth, (4,) * fours),
            adam,
        ),
        "FoMoH": (make_loss(depth), fomoh_jax.fomoh(1.0)),
        "FoMoH-2D": (make_loss(depth), plane),
    }


def compile_step(
    loss: Callable, tx: optax.GradientTransformation, params: Any, data: tuple
) -> Any:
    """One step, ``(params, state, inputs, labels) -> (params, state)``."""

    def step(params, state, inputs, labels):
        on_data = lambda params: loss(params, inputs, labels)
        updates, state = tx.update(None, state, params, value_fn=on_data)
        return optax.apply_updates(params, updates), state

    tx = optax.with_extra_args_support(tx)
    return jax.jit(step).lower(params, tx.init(params), *data).compile()


def megabytes(compiled: Any) -> float:
    """The temporary memory of a compiled program."""
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def measure(config: Config, data: tuple) -> dict[str, list[float]]:
    """Megabytes of a step of every method, at each of the depths."""
    sizes = {}
    for depth in (bar := tqdm(config.depths, unit="depth")):
        params = initialise(jax.random.key(0), depth, config.width)
        for name, (loss, tx) in make_steps(depth).items():
            bar.set_postfix_str(name)
            size = megabytes(compile_step(loss, tx, params, data))
            sizes.setdefault(name, []).append(size)
    return sizes


def train(
    name: str, config: Config, data: tuple, steps: int, seeds: int
) -> tuple[np.ndarray, float]:
    """Losses of the deepest network, ``[seeds, steps + 1]``, and seconds a step."""
    depth = config.depths[-1]
    loss, tx = make_steps(depth)[name]
    tx = optax.with_extra_args_support(tx)
    evaluate = jax.jit(make_loss(depth))
    params = initialise(jax.random.key(0), depth, config.width)
    step = compile_step(loss, tx, params, data)
    curves, seconds = [], []
    for seed in range(seeds):
        params = initialise(jax.random.key(seed), depth, config.width)
        state, curve = tx.init(params), []
        for _ in range(steps):
            curve.append(float(evaluate(params, *data)))
            start = time.perf_counter()
            params, state = jax.block_until_ready(step(params, state, *data))
            seconds.append(time.perf_counter() - start)
        curves.append([*curve, float(evaluate(params, *data))])
    return np.array(curves), float(np.median(seconds))


def draw(
    config: Config,
    sizes: dict[str, list[float]],
    curves: dict[str, np.ndarray],
    path: Path,
) -> None:
    """Memory against depth, and the training of the deepest network."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    colors = {name: f"C{i}" for i, name in enumerate(sizes)}
    for name, row in sizes.items():
        left.plot(config.depths, row, "o-", color=colors[name], label=name)
    left.axhline(config.budget_mb, color="black", ls="--", lw=1)
    left.text(
        config.depths[-1], 0.95 * config.budget_mb, "budget", va="top", ha="right"
    )
    left.set(
        xscale="log", yscale="log", xlabel="layers", ylabel="temporary memory [MB]",
        title="one step of the optimiser", xticks=config.depths,
        xticklabels=config.depths,
    )  # fmt: skip
    left.minorticks_off()
    left.legend(fontsize=7.5)
    for name, losses in curves.items():
        fits = "fits" if sizes[name][-1] <= config.budget_mb else "does not fit"
        x = np.arange(losses.shape[1])
        label = f"{name} ({fits})"
        plotting.plot_quartiles(right, x, losses, label=label, color=colors[name])
    title = f"{config.depths[-1]} layers, median and quartiles of {config.seeds} seeds"
    right.set(xlabel="iteration", ylabel="logistic loss", title=title)
    right.set_ylim(0, 1.1 * max(losses[:, 0].max() for losses in curves.values()))
    right.legend(fontsize=7.5)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    plotting.save(figure, path)


def summary(
    config: Config,
    sizes: dict[str, list[float]],
    runs: dict[str, tuple[np.ndarray, float]],
) -> str:
    """A row a method; the losses of those that trained."""
    columns = {"method": list(sizes)}
    for i, depth in enumerate(config.depths):
        columns[f"MB, {depth} layers"] = [f"{row[i]:.2f}" for row in sizes.values()]
    fits = ["yes" if row[-1] <= config.budget_mb else "no" for row in sizes.values()]
    columns[f"fits {config.budget_mb:g} MB"] = fits
    columns["ms a step"] = [f"{1e3 * runs[name][1]:.0f}" for name in sizes]
    trained = {name: losses for name, (losses, _) in runs.items() if len(losses)}
    for title, place in {"first loss": 0, "last loss": -1}.items():
        columns[title] = [
            plotting.mean_and_deviation(trained[name][:, place])
            if name in trained
            else "-"
            for name in sizes
        ]
    columns["steps"] = [
        str(trained[name].shape[1] - 1) if name in trained else "-" for name in sizes
    ]
    notes = (
        "Temporaries of one optimiser step, by XLA's count. Times are those of this "
        "machine while other work ran on it. Checkpoints in fours of fours cost a "
        "forward pass more for every fourfold depth. Losses of what fits, and of that "
        "one for comparison, which a budget a little larger admits."
    )
    return f"{plotting.table(columns)}\n\n{notes}"


def main(config: Config) -> None:
    """Measure, train what fits, and write what came out."""
    powers = [4**i for i in range(1, 9)]
    if not config.depths or not set(config.depths) <= set(powers):
        raise SystemExit("--depths must be powers of 4, such as 16 64 256.")
    if min(config.steps, config.seeds, config.width, config.batch) < 1:
        raise SystemExit("--steps, --seeds, --width and --batch must be at least 1.")
    data = spirals(config.batch)
    sizes = measure(config, data)
    runs = {}
    for name, row in (bar := tqdm(sizes.items(), unit="method")):
        bar.set_postfix_str(name)
        if row[-1] <= config.budget_mb or name == FRUGAL:
            # Adam is there in a quarter of the steps.
            steps = -(-config.steps // 4) if name == FRUGAL else config.steps
            runs[name] = train(name, config, data, steps, config.seeds)
        else:  # a few steps, for their time
            runs[name] = np.empty((0, 0)), train(name, config, data, 5, 1)[1]
    folder = config.out / "memory"
    folder.mkdir(parents=True, exist_ok=True)
    curves = {name: losses for name, (losses, _) in runs.items() if len(losses)}
    draw(config, sizes, curves, folder / "memory.png")
    text = summary(config, sizes, runs)
    (folder / "table.md").write_text(text + "\n")
    print(f"{text}\n\nfigure: {folder / 'memory.png'}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
