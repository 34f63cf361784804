"""Minimise the D-dimensional Rosenbrock function from random starts.

    python -m experiments.rosenbrock --dimensions 2 5 10

FoMoH, FoMoH-KD for K = 2 … D, K = D in a trust region, Newton's method with the exact
Hessian, and FGD and Adam with learning rates searched over a grid. Then the trust
region from many more starts. Writes ``curves.png`` and ``table.md`` into
``experiments/results/rosenbrock`` and prints the tables.
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import fomoh_jax
from experiments import minimisation, plotting, study
from experiments.minimisation import Contender, Runs, exact_gradient, minimise, steps_to

TARGET = 1e-8  # a loss that has arrived at the minimum, which is zero
PRECISE = 1e-12  # the same, for the trust region
TRUST_REGION = "K = D, trust region"


@dataclasses.dataclass(frozen=True)
class Config:
    """The D-dimensional Rosenbrock function, float64, from standard normal starts."""

    dimensions: tuple[int, ...] = (2, 5, 10)
    """The values of D."""
    steps: int = 1000
    """Iterations of every method."""
    seeds: int = 10
    """Random starts."""
    many_seeds: int = 100
    """Random starts of the trust region, of each kind."""
    fgd_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    """Grid of learning rates; the one of the best median final loss is shown."""
    adam_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Grid of learning rates; the one of the best median final loss is shown."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder rosenbrock."""


def rosenbrock(x: jax.Array) -> jax.Array:
    r""":math:`\sum_i (1 - x_i)^2 + 100 (x_{i+1} - x_i^2)^2`, zero at ones."""
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def make_contenders(dimension: int, config: Config) -> dict[str, Contender]:
    """The methods to compare, of which only FGD and Adam need a learning rate."""
    kd = lambda k: Contender(
        lambda rate, key: fomoh_jax.fomoh_kd(k, learning_rate=rate, key=key)
    )
    fgd = lambda rate, key: fomoh_jax.fgd(rate, key=key)
    adam = lambda rate, key: optax.chain(exact_gradient(), optax.adam(rate))
    return {
        "FGD": Contender(fgd, config.fgd_rates),
        "FoMoH": Contender(lambda rate, key: fomoh_jax.fomoh(rate, key=key)),
        **{f"FoMoH-{k}D": kd(k) for k in range(2, dimension + 1)},
        TRUST_REGION: trust_region(dimension),
        "Newton": Contender(lambda rate, key: minimisation.newton()),
        "Adam": Contender(adam, config.adam_rates),
    }


def trust_region(dimension: int) -> Contender:
    """The minimum of the whole quadratic model, within a radius."""
    options = {"k": dimension, "solver": fomoh_jax.solvers.trust_region()}
    return Contender(lambda rate, key: fomoh_jax.fomoh_kd(**options, key=key))


def run_all(dimension: int, config: Config) -> dict[str, Runs]:
    """Every method, from the same starts."""
    starts = jax.random.normal(jax.random.key(0), (config.seeds, dimension))
    contenders = make_contenders(dimension, config)
    return minimisation.minimise_all(rosenbrock, contenders, starts, config.steps)


def draw(results: dict[int, dict[str, Runs]]) -> plt.Figure:
    """The figure: a panel for each dimension, with a curve for each method."""
    shape = {"figsize": (4.4 * len(results), 4.8), "sharey": True, "squeeze": False}
    figure, panels = plt.subplots(1, len(results), **shape)
    for axes, (dimension, runs) in zip(panels[0], results.items()):
        styles = _styles(list(runs))
        for name, run in runs.items():
            x = np.arange(1, run.losses.shape[1] + 1)
            # Zero has no logarithm.
            shown = np.clip(run.losses, 1e-32, 1e30)
            label = name.removeprefix("FoMoH-")
            plotting.plot_quartiles(axes, x, shown, label=label, **styles[name])
        labels = {"xlabel": "iteration", "title": f"D = {dimension}"}
        plotting.dress(axes, "xy", {"ncols": 2, "loc": "lower left"}, **labels)
    panels[0, 0].set(ylim=(1e-20, 1e6), ylabel="f(x) - min f")
    figure.suptitle("Rosenbrock: median over the seeds, and the quartiles")
    return figure


def _styles(names: list[str]) -> dict[str, dict]:
    """The hyperplanes from dark to light as K grows, the others apart from them."""
    planes = [name for name in names if re.fullmatch(r"FoMoH-\d+D", name)]
    shades = plt.colormaps["viridis"](np.linspace(0, 0.92, len(planes)))
    others = {"FGD": "tab:gray", "FoMoH": "tab:red", "Adam": "tab:orange"}
    colors = {**dict(zip(planes, shades)), **others, TRUST_REGION: "crimson"}
    styles = {name: {"color": color} for name, color in colors.items()}
    return styles | {"Newton": {"color": "black", "ls": "--", "dashes": (2, 2)}}


def summary(results: dict[int, dict[str, Runs]], config: Config) -> str:
    """A table of final losses and of the steps to the target."""
    contenders = make_contenders(max(config.dimensions), config)
    rows = []
    for dimension, runs in results.items():
        for name, run in runs.items():
            first, final = steps_to(run.losses, TARGET), run.losses[:, -1]
            steps, searches = np.median(first), len(contenders[name].rates) > 1
            arrived = np.isfinite(first).sum()
            rows.append(
                {
                    "method": name,
                    "D": dimension,
                    "learning rate": f"{run.rate:g}" if searches else None,
                    "median final loss": f"{np.median(final):.1e}",
                    "worst": f"{final.max():.1e}",
                    f"seeds at {TARGET:g}": f"{arrived} / {len(first)}",
                    "median steps to it": f"{steps:.0f}" if steps < np.inf else None,
                }
            )
    rates = minimisation.searched(contenders)
    return f"{study.table(rows)}\n\n{config.steps} iterations. {rates}"


def reliability(config: Config) -> str:
    """A table of where the trust region ends from many starts, with the largest D."""
    dimension = max(config.dimensions)
    key, shape = jax.random.key(2), (config.many_seeds, dimension)
    starts = {
        "standard normal": jax.random.normal(key, shape),
        "uniform in [0, 2]": jax.random.uniform(key, shape, maxval=2.0),
    }
    rows = []
    for name, points in starts.items():
        run = minimise(rosenbrock, trust_region(dimension), points, config.steps)
        first = steps_to(run.losses, PRECISE)
        there = np.isfinite(first)
        other = ~there & np.asarray(jax.vmap(is_minimum)(run.points))
        steps = first[there] if there.any() else [np.nan]
        rows.append(
            {
                "starts": f"{len(first)}, {name}",
                f"at {PRECISE:g}": there.sum(),
                "at another minimum": other.sum(),
                "anywhere else": (~there & ~other).sum(),
                "median steps": f"{np.median(steps):.0f}",
                "most steps": f"{np.max(steps):.0f}",
            }
        )
    return f"FoMoH-{dimension}D in a trust region:\n\n{study.table(rows)}"


def is_minimum(x: jax.Array) -> jax.Array:
    """Whether the gradient is zero and the Hessian is positive definite."""
    flat = jnp.linalg.norm(jax.grad(rosenbrock)(x)) < 1e-6
    return flat & (jnp.linalg.eigvalsh(jax.hessian(rosenbrock)(x))[0] > 0)


def main(config: Config) -> None:
    """Run every method from every start, and write the results."""
    study.at_least(2, config, "dimensions")
    study.at_least(1, config, "steps", "seeds", "many_seeds")
    jax.config.update("jax_enable_x64", True)
    results = {dimension: run_all(dimension, config) for dimension in config.dimensions}
    text = f"{summary(results, config)}\n\n{reliability(config)}"
    study.write(config.out / "rosenbrock", text, curves=draw(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
