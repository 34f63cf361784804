"""Figures of the suite's results: an overview; time against k, memory against depth."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from experiments.benchmarks import depth
from experiments.benchmarks.measurement import ADJOINT, OURS
from experiments.benchmarks.report import Row, at, by_place, time_ratio

# The tables of the overview: what is computed.
KINDS = {
    "kinetic energy of a wave function": ("kinetic",),
    "Laplacian of a network of nodes": ("nodes",),
    "curvature along k directions": ("networks", "hyperplane"),
    "Laplacian of a PDE's network": ("pinn", "operators"),
    "sparse Hessian": ("sparse",),
    "dense Hessian of a scalar": ("hessian",),
    "gradient of a network, estimated": ("gradient",),
}
# From so many directions on, "auto" is the adjoint plan.
FEWEST = 5


def draw_overview(results: Sequence[dict[str, Any]]) -> plt.Figure | None:
    """Our time over that of the fastest other way, for each program of a kind.

    The tables are of the CPU, and of the newest JAX with which the most ways could be
    timed (asdex cannot be imported beside every one). A ring is the geometric mean.
    """
    shares: dict[str, list[float]] = {}
    for kind, tables in KINDS.items():
        rows = [row for table in tables for row in _newest(results, table)]
        if found := [share for row in rows if (share := share_of_fastest(row))]:
            shares[kind] = found
    if not shares:
        return None
    figure, axes = plt.subplots(figsize=(7.5, 0.4 * len(shares) + 1.3))
    for place, found in enumerate(reversed(shares.values())):
        axes.plot(found, [place] * len(found), "|", color="0.45", ms=11)
        axes.plot(np.exp(np.mean(np.log(found))), place, "ko", ms=9, mfc="white", mew=2)
    axes.axvline(1, color="black", lw=0.8)
    axes.set(
        xscale="log",
        xlabel="time of fomoh_jax ÷ time of the fastest other way",
        ylim=(-0.6, len(shares) - 0.4),
    )
    axes.set_yticks(range(len(shares)), [*reversed(shares)])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(
        "← faster          slower →", x=_place_of_one(axes), fontsize="medium"
    )
    return figure


def share_of_fastest(row: Row) -> float | None:
    """Our time over that of the fastest other way; ``None`` if none was timed."""
    to = ADJOINT if row["sizes"].get("k", 0) >= FEWEST else OURS
    ours = {"2 blocks", "4 probes", "faster folx", "SGD", "Adam"}
    others = [
        ratio[1]
        for name in row["contenders"]
        if not name.startswith(OURS) and name not in ours
        if (ratio := time_ratio(row, name, to))
    ]
    return 1 / min(others) if others else None


def _newest(results: Sequence[dict[str, Any]], table: str) -> list[Row]:
    """The rows of a table, of the CPU and one version of JAX."""
    by_version: dict[tuple[int, ...], list[Row]] = {}
    for result in results:
        on_cpu = result["environment"]["device"] == "cpu"
        if result["table"] == table and on_cpu and not result["config"].get("quick"):
            version = tuple(map(int, result["environment"]["jax"].split(".")))
            by_version.setdefault(version, []).extend(result["rows"])

    def timed(version: tuple[int, ...]) -> int:
        rows = by_version[version]
        names = {name for row in rows for name in row["contenders"]}
        return sum(any(time_ratio(row, name) for row in rows) for name in names)

    best = max(by_version, key=lambda version: (timed(version), version), default=None)
    return [] if best is None else by_version[best]


def _place_of_one(axes: plt.Axes) -> float:
    """The position of 1 along the axis, from 0 to 1."""
    low, high = np.log(axes.get_xlim())
    return -low / (high - low)


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
    """The sizes of a workload, and the values there, where there are any."""
    mine = [row for row in rows if row["workload"] == workload and value(row)]
    return list(np.array([[row["sizes"][size], *value(row)] for row in mine]).T)


def _draw_hyperplane(axes: plt.Axes, rows: list[Row]) -> None:
    """Draws a colour for each workload, dashed and hollow for the adjoint plan."""
    adjoint = {"ls": "--", "mfc": "white"}
    axes.axhline(1, color="grey", lw=0.8)
    for index, workload in enumerate(dict.fromkeys(row["workload"] for row in rows)):
        for to, style in {OURS: {"label": workload}, ADJOINT: adjoint}.items():
            ratio = lambda row: time_ratio(row, "nested jvp", to)
            if points := _points(rows, workload, "k", ratio):
                k, lower, median, upper = points  # with bars between the quartiles
                errors = list(median - lower), list(upper - median)
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
    """Sets logarithmic axes with a tick for each size, and a legend beside them."""
    axes.set(xscale="log", yscale="log")
    sizes = sorted(set(sizes))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    if sizes:
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1))
