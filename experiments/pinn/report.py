"""The figure and the tables."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import plotting, study
from experiments.benchmarks.measurement import OURS
from experiments.benchmarks.report import Row, failures, megabytes, milliseconds, times
from experiments.benchmarks.ways import TRACES
from experiments.pinn.problem import EQUATIONS, network, solution
from experiments.pinn.training import Config, Run

Runs = Mapping[str, Sequence[Run]]  # by equation


def draw(runs: Runs) -> plt.Figure:
    """The figure: a line of solution, network, error and training an equation."""
    size = 16, 3.9 * len(runs)
    figure, grid = plt.subplots(len(runs), 4, figsize=size, squeeze=False)
    for (name, seeds), (*fields, last) in zip(runs.items(), grid):
        _draw_fields(seeds[0], EQUATIONS[name].title, fields)
        for field, label in (("residuals", "residual"), ("errors", "L2 error")):
            curves = np.stack([getattr(run, field) for run in seeds])
            style = {"label": label, "logarithmic": True}
            plotting.plot_seeds(last, seeds[0].steps, curves, **style)
        last.axhline(1e-3, color="black", lw=0.8, ls=":")
        labels = {"xlabel": "iteration", "title": "relative, all seeds"}
        plotting.dress(last, "y", {"fontsize": 8}, **labels)
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


def training_table(runs: Runs) -> str:
    """A table with a row for each seed."""
    rows = []
    for name, seeds in runs.items():
        for seed, run in enumerate(seeds):
            above = np.flatnonzero(run.errors > 1e-3)
            after = above[-1] + 1 if len(above) else 0  # no error is above it again
            row = {"equation": EQUATIONS[name].title, "seed": seed}
            row["relative L2 error"] = f"{run.errors[-1]:.2e}"
            row["relative residual"] = f"{run.residuals[-1]:.2e}"
            row["iterations to 1e-3"] = next(iter(run.steps[after:]), None)
            row["seconds"] = f"{run.seconds:.0f}"
            rows.append(row)
    return study.table(rows)


def summary(config: Config, runs: Runs, records: Sequence[Row]) -> str:
    """All the tables, with a sentence about each."""
    table = lambda cells: study.table(
        {"": row["workload"], **row["sizes"], **cells(row)} for row in records
    )
    rivals = [name for name in TRACES if name != OURS]
    widths = ", ".join(map(str, config.hidden))
    training = (
        f"Hidden layers of {widths}, {config.points} points in the disc, float64: "
        f"{config.adam_steps} iterations of Adam, then {config.lbfgs_steps} of L-BFGS."
    )
    parts = [
        *([training, training_table(runs)] if runs else []),
        f"Times on {config.points} points in the unit ball of D dimensions, "
        f"float64, jax {jax.__version__}: the other ways over {OURS}, "
        "medians of paired ratios and their quartiles.",
        table(
            lambda row: (
                {f"{OURS} [ms]": milliseconds(row, OURS)}
                | {name: times(row, name) for name in rivals}
            )
        ),
        "Temporary memory in MB, by the compiler's count:",
        table(lambda row: {name: megabytes(row, name) for name in TRACES}),
        "\n".join(failures(records)),
    ]
    return "\n\n".join(filter(None, parts))
