"""Minimise the D-dimensional Rosenbrock function from random starts.

    python -m experiments.rosenbrock --dimension 10

FGD, FoMoH, FoMoH-KD for K = 2 … D, Newton's method with the exact Hessian, and Adam.
Writes ``curves.png`` and ``table.md`` into ``runs/rosenbrock/D…`` and prints the table.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from tqdm import tqdm

import fomoh_jax
from experiments import plotting


@dataclasses.dataclass(frozen=True)
class Config:
    """The D-dimensional Rosenbrock function, float64, from standard normal starts."""

    dimension: int = 10
    steps: int = 1000
    seeds: int = 10
    fgd_learning_rate: float = 5e-5
    fomoh_learning_rate: float = 1.0
    adam_learning_rate: float = 0.3
    out: Path = Path("runs/rosenbrock")


def rosenbrock(x: jax.Array) -> jax.Array:
    r""":math:`\sum_i (1 - x_i)^2 + 100 (x_{i+1} - x_i^2)^2`, zero at ones."""
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def newton() -> optax.GradientTransformationExtraArgs:
    """Newton's method with the exact gradient and ``jax.hessian``, for comparison."""

    def update(updates, state, params=None, *, value_fn, **_):
        gradient, hessian = jax.grad(value_fn)(params), jax.hessian(value_fn)(params)
        return -jnp.linalg.solve(hessian, gradient), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def make_methods(config: Config) -> dict[str, Callable]:
    """What is compared: ``name -> transformation(key)``."""
    kd = {
        f"FoMoH-{k}D": lambda key, k=k: fomoh_jax.fomoh_kd(k, 1.0, key=key)
        for k in range(2, config.dimension + 1)
    }
    return {
        "FGD": lambda key: fomoh_jax.fgd(config.fgd_learning_rate, key=key),
        "FoMoH": lambda key: fomoh_jax.fomoh(config.fomoh_learning_rate, key=key),
        **kd,
        "Newton": lambda key: newton(),
        "Adam": lambda key: optax.adam(config.adam_learning_rate),
    }


def minimise(make: Callable, starts: jax.Array, steps: int) -> np.ndarray:
    """Loss before each step and after the last, ``[seeds, steps + 1]``."""

    def run(start, key):
        tx = optax.with_extra_args_support(make(key))

        def step(carry, _):
            x, state = carry
            value, gradient = jax.value_and_grad(rosenbrock)(x)
            updates, state = tx.update(gradient, state, x, value_fn=rosenbrock)
            return (optax.apply_updates(x, updates), state), value

        (x, _), values = jax.lax.scan(step, (start, tx.init(start)), length=steps)
        return jnp.append(values, rosenbrock(x))

    keys = jax.random.split(jax.random.key(1), len(starts))
    return np.asarray(jax.jit(jax.vmap(run))(starts, keys))


def draw(results: dict[str, np.ndarray], path: Path, dimension: int) -> None:
    """One curve a method on logarithmic axes."""
    figure, axes = plt.subplots(figsize=(8, 5.2))
    planes = [name for name in results if name.startswith("FoMoH-")]
    shades = plt.colormaps["viridis"](np.linspace(0, 0.92, len(planes)))
    styles = {name: {"color": shade} for name, shade in zip(planes, shades)}
    styles |= {
        "FGD": {"color": "tab:gray"},
        "FoMoH": {"color": "tab:red"},
        "Newton": {"color": "black", "ls": "--", "dashes": (2, 2)},
        "Adam": {"color": "tab:orange"},
    }
    for name, curves in results.items():
        x = np.arange(1, curves.shape[1] + 1)
        # Zero has no logarithm: what is below the axis ends there.
        shown = np.maximum(curves, 1e-32)
        plotting.plot_seeds(
            axes, x, shown, label=name, logarithmic=True, **styles[name]
        )
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(1e-28, 1e6),
        xlabel="iteration",
        ylabel="f(x) - min f",
        title=f"Rosenbrock, {dimension} dimensions: geometric mean over seeds",
    )
    axes.legend(fontsize=8, ncols=2, loc="lower left")
    axes.grid(alpha=0.3, which="major")
    plotting.save(figure, path)


def summary(results: dict[str, np.ndarray]) -> str:
    """Final loss, and how soon a seed is there."""
    target = 1e-8
    names, finals, reached, median = [], [], [], []
    for name, curves in results.items():
        hits = curves <= target
        first = np.where(hits.any(1), hits.argmax(1), np.inf)
        names.append(name)
        finals.append(f"{np.median(curves[:, -1]):.1e}")
        reached.append(f"{np.isfinite(first).sum()} / {len(curves)}")
        steps = np.median(first)
        median.append(f"{steps:.0f}" if np.isfinite(steps) else "-")
    return plotting.table(
        {
            "method": names,
            "median final loss": finals,
            f"seeds at {target:g}": reached,
            "median steps to it": median,
        }
    )


def main(config: Config) -> None:
    """Run every method from every start, and write what came out."""
    if config.dimension < 2 or min(config.steps, config.seeds) < 1:
        raise SystemExit("--dimension must be at least 2, --steps and --seeds 1.")
    jax.config.update("jax_enable_x64", True)
    starts = jax.random.normal(
        jax.random.key(0), (config.seeds, config.dimension), jnp.float64
    )
    results = {}
    for name, make in (bar := tqdm(make_methods(config).items(), unit="method")):
        bar.set_postfix_str(name)
        results[name] = minimise(make, starts, config.steps)
    folder = config.out / f"D{config.dimension}"
    folder.mkdir(parents=True, exist_ok=True)
    draw(results, folder / "curves.png", config.dimension)
    text = summary(results)
    (folder / "table.md").write_text(text + "\n")
    print(f"{text}\n\nfigure: {folder / 'curves.png'}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
