"""The figure and the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import plotting, study
from experiments.benchmarks.measurement import OURS
from experiments.benchmarks.records import failures, megabytes, milliseconds, times
from experiments.benchmarks.traces import WAYS
from experiments.pinn.config import Config
from experiments.pinn.equations import EQUATIONS, solution
from experiments.pinn.network import network
from experiments.pinn.training import Run


def draw(runs: Mapping[str, Sequence[Run]]) -> plt.Figure:
    """A line for each equation: solution, network, error, and how it was learned."""
    shape = len(runs), 4
    figure, grid = plt.subplots(*shape, figsize=(16, 3.9 * shape[0]), squeeze=False)
    for (name, seeds), (*fields, last) in zip(runs.items(), grid):
        _draw_fields(seeds[0], EQUATIONS[name].title, fields)
        for field, label in (("residuals", "residual"), ("errors", "L2 error")):
            curves = np.stack([getattr(run, field) for run in seeds])
            style = {"label": label, "logarithmic": True}
            plotting.plot_seeds(last, seeds[0].steps, curves, **style)
        last.axhline(1e-3, color="black", lw=0.8, ls=":")
        last.set(yscale="log", xlabel="iteration", title="relative, all seeds")
        last.legend(fontsize=8)
        last.grid(alpha=0.3)
    return figure


def _draw_fields(run: Run, title: str, axes: Sequence[plt.Axes]) -> None:
    """Solution, network and error in the disc."""
    line = np.linspace(-1, 1, 201)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    x = jnp.asarray(points, run.params[0][0].dtype)
    inside = (points**2).sum(1) <= 1
    image = lambda values: np.where(inside, values, np.nan).reshape(201, 201)
    exact = image(jax.vmap(solution)(x))
    learned = image(jax.vmap(lambda x: network(run.params, x))(x))
    error = learned - exact
    for panel, label, values, like in (
        (axes[0], f"{title}: solution", exact, exact),
        (axes[1], "network, seed 0", learned, exact),
        (axes[2], "network - solution", error, error),
    ):
        bound, box = np.nanmax(np.abs(like)), (-1, 1, -1, 1)
        scale = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
        shown = panel.imshow(values, origin="lower", extent=box, **scale)
        panel.figure.colorbar(shown, ax=panel, shrink=0.85)
        panel.set(title=label, xticks=(-1, 0, 1), yticks=(-1, 0, 1))


def training_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """A row a seed."""
    return study.table(
        {
            "equation": EQUATIONS[name].title,
            "seed": seed,
            "relative L2 error": f"{run.errors[-1]:.2e}",
            "relative residual": f"{run.residuals[-1]:.2e}",
            "iterations to 1e-3": _arrival(run),
            "seconds": f"{run.seconds:.0f}",
        }
        for name, seeds in runs.items()
        for seed, run in enumerate(seeds)
    )


def _arrival(run: Run) -> int | None:
    """The first record from which on no error is above 1e-3."""
    above = np.flatnonzero(run.errors > 1e-3)
    after = above[-1] + 1 if len(above) else 0
    return int(run.steps[after]) if after < len(run.steps) else None


def summary(
    config: Config,
    runs: Mapping[str, Sequence[Run]],
    records: Sequence[dict[str, Any]],
) -> str:
    """All the tables, with a sentence on each."""
    parts = []
    if runs:
        widths = ", ".join(map(str, config.hidden))
        parts += [
            f"Hidden layers of {widths}, {config.points} points in the disc, "
            f"{config.precision}: {config.adam_steps} iterations of Adam, then "
            f"{config.lbfgs_steps} of L-BFGS.",
            training_table(runs),
        ]
    if records:
        rivals = [name for name in WAYS if name != OURS]
        time = {f"{OURS} [ms]": milliseconds(OURS)} | {n: times(n) for n in rivals}
        memory = {name: megabytes(name) for name in WAYS}
        parts += [
            f"Times on {config.points} points in the unit ball of D dimensions, "
            f"{config.precision}, jax {jax.__version__}: the other ways over {OURS}, "
            "medians of paired ratios and their quartiles.",
            _table(records, time),
            "Temporary memory in MB, by the compiler's count:",
            _table(records, memory),
            "\n".join(failures(records)),
        ]
    return "\n\n".join(filter(None, parts))


def _table(records: Sequence[dict[str, Any]], columns: Mapping[str, Any]) -> str:
    return study.table(
        {"": record["workload"], "D": record["sizes"]["D"]}
        | {title: cell(record) for title, cell in columns.items()}
        for record in records
    )
