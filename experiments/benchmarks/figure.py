"""A figure of the suite's results: time against k, memory against depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from experiments import plotting
from experiments.benchmarks import depth
from experiments.benchmarks.measurement import ADJOINT, OURS
from experiments.benchmarks.records import at, by_place, time_ratio


def draw(results: Sequence[dict[str, Any]], path: Path) -> bool:
    """Nested ÷ ours against k, and bytes against layers, a line of panels for each
    place where they were measured. Returns whether there was anything to draw."""
    timed = lambda rows: [row for row in rows if time_ratio(row, "nested jvp")]
    hyperplanes = {
        place: timed(rows)
        for place, rows in by_place(results, "hyperplane").items()
        if timed(rows)
    }
    depths = by_place(results, "depth")
    places = list(dict.fromkeys([*hyperplanes, *depths]))
    if not places:
        return False
    figure, axes = plt.subplots(
        len(places), 2, figsize=(12, 3.8 * len(places)), squeeze=False
    )
    for (left, right), place in zip(axes, places):
        _draw_hyperplane(left, hyperplanes.get(place, []))
        _draw_depth(right, depths.get(place, []))
        left.set_title(
            f"{', '.join(filter(None, place))}: k directions", fontsize="medium"
        )
        right.set_title("a tanh network, by its depth", fontsize="medium")
    plotting.save(figure, path)
    return True


def _draw_hyperplane(axes: plt.Axes, rows: list[dict[str, Any]]) -> None:
    """A colour for each workload, dashed and hollow where ours goes backwards."""
    adjoint = {"ls": "--", "mfc": "white"}
    axes.axhline(1, color="grey", lw=0.8)
    for index, workload in enumerate(dict.fromkeys(row["workload"] for row in rows)):
        mine = [row for row in rows if row["workload"] == workload]
        _draw_ratios(axes, mine, OURS, color=f"C{index}", label=workload)
        _draw_ratios(axes, mine, ADJOINT, color=f"C{index}", **adjoint)
    if rows:
        axes.plot([], [], "ko", ms=4, label="plans.adjoint()", **adjoint)
    axes.set(xlabel="k", ylabel="time, nested jvp ÷ ours", xscale="log", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    _label_sizes(axes, [row["sizes"]["k"] for row in rows])


def _draw_ratios(
    axes: plt.Axes, rows: list[dict[str, Any]], to: str, **style: Any
) -> None:
    """Medians, with bars from quartile to quartile."""
    points = [
        (row["sizes"]["k"], *ratio)
        for row in rows
        if (ratio := time_ratio(row, "nested jvp", to=to))
    ]
    if points:
        k, lower, median, upper = np.array(points).T
        errors = (median - lower, upper - median)
        axes.errorbar(k, median, errors, marker="o", ms=4, capsize=3, **style)


def _draw_depth(axes: plt.Axes, rows: list[dict[str, Any]]) -> None:
    styles = {"unrolled": "-", "scanned": ":"}
    for index, (name, title) in enumerate(depth.TITLES.items()):
        for workload, style in styles.items():
            points = [
                (row["sizes"]["layers"], bytes_ / 1e6)
                for row in rows
                if row["workload"] == workload
                and (bytes_ := at(row, name, "temporary_bytes"))
            ]
            if points:
                label = f"{title}, {workload}"
                axes.plot(
                    *np.array(points).T,
                    f"C{index}",
                    ls=style,
                    marker="o",
                    ms=3,
                    label=label,
                )
    axes.set(xlabel="layers", ylabel="temporaries [MB]", xscale="log", yscale="log")
    _label_sizes(axes, [row["sizes"]["layers"] for row in rows])


def _label_sizes(axes: plt.Axes, sizes: list[int]) -> None:
    sizes = sorted(set(sizes))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    if sizes:
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1))
