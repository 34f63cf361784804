"""A figure of the suite's results: time against k, memory against depth."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from experiments.benchmarks import depth
from experiments.benchmarks.measurement import ADJOINT, OURS
from experiments.benchmarks.report import Row, at, by_place, time_ratio


def draw(results: Sequence[dict[str, Any]]) -> plt.Figure | None:
    """Nested ÷ ours against k, and bytes against layers, a line of panels for each
    place where they were measured. ``None`` if there is nothing to draw."""
    hyperplanes = {
        place: timed
        for place, rows in by_place(results, "hyperplane").items()
        if (timed := [row for row in rows if time_ratio(row, "nested jvp")])
    }
    depths = by_place(results, "depth")
    if not (places := list(dict.fromkeys([*hyperplanes, *depths]))):
        return None
    size = 12, 3.8 * len(places)
    figure, axes = plt.subplots(len(places), 2, figsize=size, squeeze=False)
    for (left, right), place in zip(axes, places):
        _draw_hyperplane(left, hyperplanes.get(place, []))
        _draw_depth(right, depths.get(place, []))
        title = f"{', '.join(filter(None, place))}: k directions"
        left.set_title(title, fontsize="medium")
        right.set_title("a tanh network, by its depth", fontsize="medium")
    return figure


def _points(rows: list[Row], workload: str, size: str, value: Callable) -> list:
    """The sizes of a workload, and what there is of a value, one or several."""
    mine = [row for row in rows if row["workload"] == workload and value(row)]
    return list(np.array([[row["sizes"][size], *value(row)] for row in mine]).T)


def _draw_hyperplane(axes: plt.Axes, rows: list[Row]) -> None:
    """A colour for each workload, dashed and hollow where ours goes backwards."""
    adjoint = {"ls": "--", "mfc": "white"}
    axes.axhline(1, color="grey", lw=0.8)
    for index, workload in enumerate(dict.fromkeys(row["workload"] for row in rows)):
        for to, style in {OURS: {"label": workload}, ADJOINT: adjoint}.items():
            ratio = lambda row: time_ratio(row, "nested jvp", to)
            if points := _points(rows, workload, "k", ratio):
                k, lower, median, upper = points  # with bars between the quartiles
                errors = (median - lower, upper - median)
                style = {"marker": "o", "ms": 4, "capsize": 3, **style}
                axes.errorbar(k, median, errors, color=f"C{index}", **style)
    if rows:
        axes.plot([], [], "ko", ms=4, label="plans.adjoint()", **adjoint)
    _logarithmic(axes, [row["sizes"]["k"] for row in rows])
    axes.set(xlabel="k", ylabel="time, nested jvp ÷ ours")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_depth(axes: plt.Axes, rows: list[Row]) -> None:
    for index, (name, title) in enumerate(depth.TITLES.items()):
        for workload, style in {"unrolled": "-", "scanned": ":"}.items():
            size = lambda row: [at(row, name, "temporary_bytes") / 1e6]
            if points := _points(rows, workload, "layers", size):
                style = {"ls": style, "marker": "o", "ms": 3, "color": f"C{index}"}
                axes.plot(*points, label=f"{title}, {workload}", **style)
    _logarithmic(axes, [row["sizes"]["layers"] for row in rows])
    axes.set(xlabel="layers", ylabel="temporaries [MB]")


def _logarithmic(axes: plt.Axes, sizes: list[int]) -> None:
    """Axes with a tick for each size, and a legend beside them."""
    axes.set(xscale="log", yscale="log")
    sizes = sorted(set(sizes))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    if sizes:
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1))
