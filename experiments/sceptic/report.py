"""The sceptic's tables and figures, of the runs that are kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.ticker import StrMethodFormatter

from experiments import plotting, study
from experiments.records import Record
from experiments.sceptic import teacher
from experiments.sceptic.contenders import CONTENDERS
from experiments.sceptic.runs import best, load

HEADER = """# The sceptic's table

Made by `python -m experiments.sceptic --report` of the runs in `*.jsonl`. All methods
have the same time, counted in forward passes of the same batch that are timed between
the stretches of a run on the same core; compiling and evaluating take none of it. Of
three learning rates, and one more beyond the first or the last where that is best, the
one with the least validation loss is shown (*edge*: there is none beyond). A run is
judged at its end or, on the digits, which all would learn by heart, by the parameters
with which its validation loss was least (*best after* so many passes). *Failed* is how
many diverged or never were better than at the start. Losses are mean ± standard
deviation over the seeds. *At equal operations* is the validation loss once the
operations of {part} of the time's forward passes are spent, as the compiler counts
those of a step; where it counts both sides of a branch, of which one is taken, as in
`fomoh_ap`, that is too many.
"""
SHARE, PART = 0.5, "half"
LINES = ("-", "--", "-.", ":")


def main(results: Path) -> None:
    """Write README.md and the figures of what there is."""
    parts = [HEADER.format(part=PART)]
    found = {file.stem: list(load(file).values()) for file in results.glob("*.jsonl")}
    for name, records in found.items():
        longest = max(record["run"]["passes"] for record in records)
        found[name] = [r for r in records if r["run"]["passes"] == longest]
    for name, records in sorted(found.items()):
        if name.startswith("teacher"):
            continue
        parts += _problem(name, records, results)
    taught = {n: records for n, records in found.items() if n.startswith("teacher")}
    if taught:
        parts += _teacher(taught, results)
    (results / "README.md").write_text("\n".join(parts))
    print(f"report: {results / 'README.md'}")


def of_methods(
    records: list[Record], target: float | None = None
) -> dict[str, tuple[list[Record], list[Record]]]:
    """By method, best first: the seeds at the best learning rate, and the grid."""
    grouped = {}
    for method in CONTENDERS:
        mine = [r for r in records if r["run"]["method"] == method]
        if grid := [r for r in mine if r["run"]["seed"] == 0]:
            rate = best(grid, target)["run"]["rate"]
            grouped[method] = [r for r in mine if r["run"]["rate"] == rate], grid
    loss = lambda item: np.mean([final(record) for record in item[1][0]])
    return dict(sorted(grouped.items(), key=loss))


def final(record: Record) -> float:
    """The validation loss of a run's result."""
    loss = record["validation"]["loss"]
    return np.inf if loss is None else loss


def at_operations(record: Record, budget: float) -> float:
    """The validation loss after the operations of so many forward passes."""
    _, steps, losses = map(np.array, zip(*_finite(record["curve"])))
    if record.get("stops_early"):
        losses = np.minimum.accumulate(losses)
    spent = steps * record["flops"]
    return np.interp(budget, spent, losses) if spent[-1] >= budget else np.nan


def _time_of_least(record: Record) -> float:
    """When the validation loss was least."""
    return min(_finite(record["curve"]), key=lambda point: point[2])[0]


def to_target(record: Record) -> float:
    """The time to the target loss, infinite if it is not reached."""
    times, _, losses = map(np.array, zip(*_finite(record["curve"])))
    if losses[-1] > teacher.TARGET:
        return np.inf
    last, before = losses[-1], losses[-2]
    share = np.log(before / teacher.TARGET) / np.log(before / last)
    return times[-2] + share * (times[-1] - times[-2])


def _finite(curve: list) -> list:
    return [point for point in curve if point[2] is not None]


def _problem(name: str, records: list[Record], folder: Path) -> Iterator[str]:
    methods = of_methods(records)
    passes = records[0]["run"]["passes"]
    yield f"## {name}\n"
    environments = sorted({r["environment"] for r in records})
    yield f"{passes:,} forward passes of time; {'; '.join(environments)}.\n"
    yield study.table(_row(*item, passes) for item in methods.items()) + "\n"
    plotting.save(_curves(methods, passes), folder / f"{name}.png")
    plotting.save(_pareto(methods), folder / f"{name}-memory.png")
    yield f"![Validation loss against time]({name}.png)\n"
    yield f"![Validation loss against memory]({name}-memory.png)\n"


def _row(
    method: str, found: tuple[list[Record], list[Record]], passes: int
) -> dict[str, Any]:
    seeds, grid = found
    one = seeds[0]
    rate = one["run"]["rate"]
    rates = [r["run"]["rate"] for r in grid]
    edge = " (edge)" if rate and rate in (min(rates), max(rates)) else ""
    lost = sum(final(r) >= r["curve"][0][2] for r in grid)
    equal = [at_operations(r, SHARE * passes) for r in seeds]
    number = lambda x, form: f"{x:{form}}" if np.isfinite(x) else None
    of = lambda split, key: study.mean_and_deviation(
        [np.nan if (x := r[split].get(key)) is None else x for r in seeds]
    )
    row = {
        "method": method,
        "learning rate": rate and f"{rate:.2g}{edge}",
        "failed": f"{lost} of {len(grid)}" if lost else None,
        "steps": f"{np.mean([r['steps'] for r in seeds]):,.0f}",
        "validation loss": of("validation", "loss"),
        "test loss": of("test", "loss"),
    }
    if "accuracy" in one["test"]:
        row["test accuracy"] = of("test", "accuracy")
    if one.get("stops_early"):
        row["best after"] = f"{np.mean([_time_of_least(r) for r in seeds]):,.0f}"
    return row | {
        "at equal operations": number(np.mean(equal), ".3f"),
        "operations a step": number(one["flops"], ".3g"),
        "temporaries, MB": f"{one['temporary_bytes'] / 1e6:.3g}",
        "compile, s": f"{one['compile_seconds']:.0f}",
        "seeds": len(seeds),
    }


def _curves(methods: dict, passes: int) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(9, 5.5))
    colors = plt.colormaps["tab10"].colors
    for i, (method, (seeds, _)) in enumerate(methods.items()):
        times, _, losses = zip(*_finite(seeds[0]["curve"]))
        axes.plot(
            *(times[1:], losses[1:]),
            **{"color": colors[i % 10], "ls": LINES[i // 10], "label": method},
        )
    lowest = min(final(seeds[0]) for seeds, _ in methods.values())
    start = next(iter(methods.values()))[0][0]["curve"][0][2]
    plotting.dress(
        axes,
        log="xy",
        legend={"loc": "center left", "bbox_to_anchor": (1, 0.5)},
        xlabel="time, forward passes",
        ylabel="validation loss (first seed)",
        xlim=(passes / 200, passes),
        ylim=(0.97 * lowest, 1.1 * start),
    )
    _with_plain_numbers(axes.yaxis)
    return figure


def _pareto(methods: dict) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(9, 5.5))
    shown = []
    for method, (seeds, _) in methods.items():
        loss = np.mean([final(r) for r in seeds])
        if np.isfinite(loss):
            shown.append((seeds[0]["temporary_bytes"] / 1e6, loss, method))
    for memory, loss, method in shown:
        best = not any(m <= memory and y < loss for m, y, _ in shown)
        axes.plot(memory, loss, "ko" if best else "wo", mec="k")
        axes.annotate(
            *(method, (memory, loss)),
            **{"xytext": (5, 3), "textcoords": "offset points", "fontsize": 7.5},
        )
    axes.margins(x=0.25)  # for the names
    plotting.dress(
        axes,
        log="xy",
        xlabel="temporaries of a step, MB",
        ylabel="validation loss (black: none is better with less memory)",
    )
    for axis in (axes.xaxis, axes.yaxis):
        _with_plain_numbers(axis)
    return figure


def _with_plain_numbers(axis: Axis) -> None:
    """Writes 1.2 instead of 1.2 × 10⁰, also at minor ticks within a power of ten."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if axis.get_view_interval()[1] < 10 * axis.get_view_interval()[0]:
        axis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def _teacher(found: dict[str, list[Record]], folder: Path) -> Iterator[str]:
    costs = {}
    for name, records in found.items():
        _, inputs, rank = name.split("-")
        for method, (seeds, _) in of_methods(records, teacher.TARGET).items():
            costs[method, int(inputs), int(rank)] = np.median(
                [to_target(record) for record in seeds]
            )
    frame = pd.Series(costs).unstack([1, 2])
    yield "## A linear teacher: cost by dimension and by effective rank\n"
    yield (
        f"Forward passes' time until the loss is {teacher.TARGET} of that at the "
        f"start, at the best learning rate; the median of the seeds. Between "
        f"two looks at the loss, its logarithm is interpolated. There are "
        f"{teacher.OUTPUTS} parameters for each input.\n"
    )
    shown = lambda x: None if np.isnan(x) else f"{x:,.0f}"
    sizes = sorted(frame.columns, key=lambda size: (size[1] != 16, size))
    rows = [
        {"method": method}
        | {
            f"{n} inputs, rank {r}": "not reached"
            if np.isinf(x := frame.loc[method, (n, r)])
            else shown(x)
            for n, r in sizes
        }
        for method in sorted(frame.index, key=lambda m: frame.loc[m].median())
    ]
    yield study.table(rows) + "\n"
    if len({rank for _, rank in sizes}) > 1:
        plotting.save(_costs(frame), folder / "teacher.png")
        yield "![Time to the target by dimension and effective rank](teacher.png)\n"


def _costs(frame: pd.DataFrame) -> plt.Figure:
    figure, both = plt.subplots(1, 2, figsize=(11, 5), sharey=True)
    colors = plt.colormaps["tab10"].colors
    by_inputs = sorted(n for n, r in frame.columns if r == 16)
    by_rank = sorted(r for n, r in frame.columns if n == 1024)
    for i, method in enumerate(frame.index):
        style = {"color": colors[i % 10], "ls": LINES[i // 10], "marker": "."}
        many = [frame.loc[method, (n, 16)] for n in by_inputs]
        broad = [frame.loc[method, (1024, r)] for r in by_rank]
        sizes = [teacher.OUTPUTS * n for n in by_inputs]
        both[0].plot(sizes, many, label=method, **style)
        both[1].plot([teacher.OUTPUTS * r for r in by_rank], broad, **style)
    plotting.dress(
        *(both[0], "xy"),
        xlabel="parameters (effective rank of the Hessian: 256)",
        ylabel=f"forward passes' time to {teacher.TARGET} of the loss",
    )
    plotting.dress(
        *(both[1], "xy"),
        xlabel="effective rank of the Hessian (16,384 parameters)",
    )
    return figure
