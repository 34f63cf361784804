"""The figure and the tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import plotting
from experiments.benchmarks.measurement import OURS
from experiments.pinn.comparison import rivals
from experiments.pinn.config import Config
from experiments.pinn.equations import EQUATIONS, solution
from experiments.pinn.network import network
from experiments.pinn.operators import FACTORED, NOT_INSTALLED
from experiments.pinn.training import Run


def draw(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """A line for each equation: solution, network, error, and how it was learned."""
    shape = len(runs), 4
    figure, grid = plt.subplots(*shape, figsize=(16, 3.9 * shape[0]), squeeze=False)
    for (name, seeds), axes in zip(runs.items(), grid):
        _draw_fields(seeds[0], EQUATIONS[name].title, axes[:3])
        steps = seeds[0].steps
        curves = lambda field: np.stack([getattr(run, field) for run in seeds])
        for field, label in (("residuals", "residual"), ("errors", "L2 error")):
            plotting.plot_seeds(
                axes[3], steps, curves(field), label=label, logarithmic=True
            )
        axes[3].axhline(1e-3, color="black", lw=0.8, ls=":")
        axes[3].set(yscale="log", xlabel="iteration", title="relative, all seeds")
        axes[3].legend(fontsize=8)
        axes[3].grid(alpha=0.3)
    plotting.save(figure, path)


def _draw_fields(run: Run, title: str, axes: Sequence[plt.Axes]) -> None:
    """Solution, network and error in the disc."""
    line = np.linspace(-1, 1, 201)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    x = jnp.asarray(points, run.params[0][0].dtype)
    inside = (points**2).sum(1) <= 1
    image = lambda values: np.where(inside, values, np.nan).reshape(201, 201)
    exact = image(jax.vmap(solution)(x))
    learned = image(jax.vmap(lambda x: network(run.params, x))(x))
    panels = {
        f"{title}: solution": exact,
        "network, seed 0": learned,
        "network - solution": learned - exact,
    }
    largest = np.nanmax(np.abs(exact))
    for panel, (label, values) in zip(axes, panels.items()):
        bound = largest if "-" not in label else np.nanmax(np.abs(values))
        shown = panel.imshow(
            values, cmap="RdBu_r", vmin=-bound, vmax=bound, origin="lower",
            extent=(-1, 1, -1, 1),
        )  # fmt: skip
        panel.figure.colorbar(shown, ax=panel, shrink=0.85)
        panel.set(title=label, xticks=(-1, 0, 1), yticks=(-1, 0, 1))


def training_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """A row a seed."""
    rows = [
        {
            "equation": EQUATIONS[name].title,
            "seed": str(seed),
            "relative L2 error": f"{run.errors[-1]:.2e}",
            "relative residual": f"{run.residuals[-1]:.2e}",
            "iterations to 1e-3": str(_arrival(run)),
            "seconds": f"{run.seconds:.0f}",
        }
        for name, seeds in runs.items()
        for seed, run in enumerate(seeds)
    ]
    return _table(rows)


def _arrival(run: Run) -> int | str:
    """The first record from which on no error is above 1e-3."""
    above = np.flatnonzero(run.errors > 1e-3)
    after = above[-1] + 1 if len(above) else 0
    return int(run.steps[after]) if after < len(run.steps) else "-"


def time_table(records: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of ours, and how many times as long the others take."""
    rows = []
    for record in records:
        contenders = record["contenders"]
        row = _name(record) | {f"{OURS} [ms]": "-"}
        if "seconds" in contenders[OURS]:
            milliseconds = 1e3 * contenders[OURS]["seconds"]["median"]
            row[f"{OURS} [ms]"] = f"{milliseconds:.3g}"
        for name in rivals():
            row[name] = _ratio(contenders.get(name, {}))
        rows.append(row)
    return _table(rows)


def memory_table(records: Sequence[dict[str, Any]]) -> str:
    """Megabytes of temporaries, by the compiler's count."""
    rows = []
    for record in records:
        row = _name(record)
        for name in (OURS, *rivals()):
            contender = record["contenders"].get(name, {})
            size = contender.get("temporary_bytes")
            row[name] = _failure(contender) if size is None else f"{size / 1e6:.2f}"
        rows.append(row)
    return _table(rows)


def failures(records: Sequence[dict[str, Any]]) -> list[str]:
    """What could not be run and why, a line each."""
    lines = {
        f"{name}: {contender['error']}": None
        for record in records
        for name, contender in record["contenders"].items()
        if "error" in contender
    }
    return list(lines)


def summary(
    config: Config,
    runs: Mapping[str, Sequence[Run]],
    records: Sequence[dict[str, Any]],
) -> str:
    """All the tables, with a sentence on each."""
    widths = ", ".join(map(str, config.hidden))
    parts = []
    if runs:
        text = (
            f"A tanh network with hidden layers of {widths}, {config.points} points in "
            f"the disc, {config.precision}: {config.adam_steps} iterations of Adam, "
            f"then {config.lbfgs_steps} of L-BFGS, with the gradient by reverse mode "
            f"over `{OURS}.laplacian`. The error is on points of its own. Seconds are "
            "those of this machine while other work ran on it; of the first seed, with "
            "the compilation."
        )
        parts += [text, training_table(runs)]
    if records:
        parts += [
            f"Times on a batch of {config.points} points in the unit ball of D "
            f"dimensions, {config.precision}, jax {jax.__version__}: how many times as "
            f"long as {OURS} each other way takes, the median of paired ratios and the "
            "quartiles. Every way that ran gave the same numbers. With weights, "
            f"{FACTORED}, nested jvp, jet and folx are given a Cholesky factor of "
            "them, which an indefinite operator does not have.",
            time_table(records),
            "Temporary memory in MB, by the compiler's count:",
            memory_table(records),
        ]
        parts += ["\n".join(failures(records))] * bool(failures(records))
    return "\n\n".join(parts)


def _name(record: dict[str, Any]) -> dict[str, str]:
    return {"": record["workload"], "D": str(record["sizes"]["D"])}


def _ratio(contender: dict[str, Any]) -> str:
    if "ratio" not in contender:
        return _failure(contender)
    ratio = contender["ratio"]["seconds"]
    low, middle, high = (
        ratio[key] for key in ("lower_quartile", "median", "upper_quartile")
    )
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _failure(contender: dict[str, Any]) -> str:
    if "error" in contender:
        return NOT_INSTALLED if NOT_INSTALLED in contender["error"] else "error"
    return contender.get("skipped", "-")


def _table(rows: Sequence[dict[str, str]]) -> str:
    return plotting.table({key: [row[key] for row in rows] for key in rows[0]})
