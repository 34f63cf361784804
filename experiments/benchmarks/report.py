"""Markdown tables and a figure of the suite's JSON files.

Times are a rival's over ours, paired within a round: how many times as fast ours is.
Counts are ours over the rival's: the fraction that ours needs.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.ticker import NullLocator

from experiments import plotting
from experiments.benchmarks.measurement import ADJOINT, OURS

NONE = "–"

# Where a record has its seconds over those of ours.
_RATIO = {OURS: ("ratio", "seconds"), ADJOINT: ("seconds_over_adjoint",)}

# What the contenders of the depth table are called where k matters.
DEPTH = {
    OURS: "ours, k=2",
    "nested jvp": "nested jvp, k=2",
    "fomoh_jax, k=1": "ours, k=1",
    "gradient": "gradient",
    "gradient, checkpointed": "gradient, checkpointed",
}


def main(
    files: tyro.conf.Positional[tuple[Path, ...]], figure: Path | None = None
) -> None:
    """Print Markdown tables of JSON files, and draw what they hold into a figure.

    Args:
      files: as the tables write them.
      figure: a PNG; by default ``benchmarks.png`` beside the first file.
    """
    if not files:
        raise SystemExit("report needs the JSON files of some tables.")
    results = [json.loads(path.read_text()) for path in files]
    print("\n\n".join(section(result) for result in results))
    figure = figure or files[0].parent / "benchmarks.png"
    if draw(results, figure):
        print(f"\nfigure: {figure}")


def section(result: dict[str, Any]) -> str:
    """A heading, the machine, the tables, and what could not be run."""
    parts = [f"### {result['table']}", conditions(result), markdown(result)]
    failures = list(_failures(result["rows"]))
    return "\n\n".join(parts + (["\n".join(failures)] if failures else []))


def conditions(result: dict[str, Any]) -> str:
    """What the numbers were measured on, in a sentence."""
    env = result["environment"]
    where = f"{env['cpu']}, {env['cores']} cores"
    if env["device"] != "cpu":
        where = f"{env['device']} ({where})"
    return (
        f"{where}; jax {env['jax']}, {result['config']['precision']}, "
        f"{env['gemm_gflops']:.0f} GFLOP/s in a float32 product of 2048×2048, "
        f"{env['copy_gb_per_second']:.0f} GB/s in a copy; "
        f"commit {env['commit'] or 'unknown'}, {env['date'][:10]}."
    )


def markdown(result: dict[str, Any]) -> str:
    """One table or two, each with one line for each row."""
    rows = result["rows"]
    names = {"workload": [row["workload"] for row in rows], **_size_columns(rows)}
    return "\n\n".join(
        plotting.table({**names, **columns(rows)})
        for columns in _TABLES[result["table"]]
    )


def draw(results: Iterable[dict[str, Any]], path: Path) -> bool:
    """Nested ÷ ours against k, and bytes against layers, a line of panels for each
    place where they were measured. Returns whether there was anything to draw."""
    places: dict[str, dict[str, list]] = {}
    for result in results:
        if result["table"] in ("hyperplane", "depth"):
            tables = places.setdefault(_place(result), {})
            tables.setdefault(result["table"], []).extend(result["rows"])
    if not places:
        return False
    figure, axes = plt.subplots(
        len(places), 2, figsize=(12, 3.8 * len(places)), squeeze=False
    )
    for (left, right), (place, tables) in zip(axes, places.items()):
        _draw_hyperplane(left, tables.get("hyperplane", []))
        _draw_depth(right, tables.get("depth", []))
        left.set_title(f"{place}: k directions", fontsize="medium")
        right.set_title("a tanh network, by its depth", fontsize="medium")
    plotting.save(figure, path)
    return True


def _place(result: dict[str, Any]) -> str:
    env, precision = result["environment"], result["config"]["precision"]
    device = env["cpu"] if env["device"] == "cpu" else env["device"]
    quick = ", quick" if result["config"].get("quick") else ""  # other sizes
    return f"{device}, jax {env['jax']}, {precision}{quick}"


def _draw_hyperplane(axes: plt.Axes, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if _at(row, "nested jvp", "ratio")]  # timed
    for workload in dict.fromkeys(row["workload"] for row in rows):
        points = [
            (row["sizes"]["k"], *_quartiles(_at(row, "nested jvp", "ratio", "seconds")))
            for row in rows
            if row["workload"] == workload
        ]
        k, lower, median, upper = np.array(points).T
        errors = (median - lower, upper - median)
        axes.errorbar(k, median, errors, marker="o", ms=4, capsize=3, label=workload)
    axes.axhline(1, color="grey", lw=0.8, ls="--")
    axes.set(xlabel="k", ylabel="time, nested jvp ÷ ours", xscale="log")
    _label_sizes(axes, [row["sizes"]["k"] for row in rows])


def _draw_depth(axes: plt.Axes, rows: list[dict[str, Any]]) -> None:
    styles = {"unrolled": "-", "scanned": ":"}
    for index, (name, title) in enumerate(DEPTH.items()):
        for workload, style in styles.items():
            points = [
                (row["sizes"]["layers"], bytes_ / 1e6)
                for row in rows
                if row["workload"] == workload
                and (bytes_ := _at(row, name, "temporary_bytes"))
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


def _size_columns(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for row in rows for key in row["sizes"])
    return {key: [str(row["sizes"].get(key, NONE)) for row in rows] for key in keys}


def _hyperplane(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        **_times_beside_nested(rows),
        "reverse ÷ ours": _ratios(rows, "forward over reverse"),
        "reverse ÷ adjoint": _ratios(rows, "forward over reverse", to=ADJOINT),
        "jet ÷ ours": _ratios(rows, "jet"),
    }


def _operators(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        **_times_beside_nested(rows),
        "jax.hessian ÷ ours": _ratios(rows, "jax.hessian"),
        "jax.hessian ÷ adjoint": _ratios(rows, "jax.hessian", to=ADJOINT),
        "jet ÷ ours": _ratios(rows, "jet"),
        "folx ÷ ours": _ratios(rows, "folx"),
    }


def _times_beside_nested(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        "ours ms": _times(rows, OURS),
        "adjoint ms": _times(rows, ADJOINT),
        "nested ms": _times(rows, "nested jvp"),
        "nested ÷ ours": _ratios(rows, "nested jvp"),
        "nested ÷ adjoint": _ratios(rows, "nested jvp", to=ADJOINT),
    }


def _counts_beside_nested(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    counts = {
        "FLOPs": "flops",
        "temporaries": "temporary_bytes",
        "compile time": "compile_seconds",
    }
    return {
        f"{title}, {way} ÷ nested": _fractions(rows, "nested jvp", key, of=name)
        for title, key in counts.items()
        for way, name in {"forward": OURS, "adjoint": ADJOINT}.items()
    }


def _step(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        "ours ms": _times(rows, OURS),
        "SGD ms": _times(rows, "SGD"),
        "Adam ms": _times(rows, "Adam"),
        "SGD ÷ ours": _ratios(rows, "SGD"),
        "Adam ÷ ours": _ratios(rows, "Adam"),
        "FLOPs, ours ÷ Adam": _fractions(rows, "Adam", "flops"),
        "temporaries, ours ÷ Adam": _fractions(rows, "Adam", "temporary_bytes"),
    }


def _depth(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    megabytes = {f"{DEPTH[name]}, MB": _megabytes(rows, name) for name in DEPTH}
    return {
        **megabytes,
        "FLOPs, ours ÷ nested": _fractions(rows, "nested jvp", "flops"),
    }


def _width(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    rivals = _beside_whole(rows).items()
    ratios = {f"{title} ÷ whole": _ratios(rows, name) for title, name in rivals}
    return {"whole ms": _times(rows, OURS), **ratios}


def _width_memory(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    names = {"whole": OURS, **_beside_whole(rows)}
    return {f"{title}, MB": _megabytes(rows, name) for title, name in names.items()}


def _beside_whole(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The chunks, the smallest first, and nested ``jvp``, by their titles."""
    names = dict.fromkeys(name for row in rows for name in row["contenders"])
    chunked = [name for name in names if name.startswith(f"{OURS}, ")]
    titles = {name.removeprefix(f"{OURS}, "): name for name in chunked}
    return {**titles, "nested": "nested jvp"}


_TABLES = {
    "hyperplane": (_hyperplane, _counts_beside_nested),
    "step": (_step,),
    "operators": (_operators, _counts_beside_nested),
    "depth": (_depth,),
    "width": (_width, _width_memory),
}


def _times(rows: list[dict[str, Any]], name: str) -> list[str]:
    medians = [_at(row, name, "seconds", "median") for row in rows]
    return [NONE if x is None else _digits(1e3 * x) for x in medians]


def _ratios(rows: list[dict[str, Any]], name: str, *, to: str = OURS) -> list[str]:
    """Median and quartiles of the paired ratio, or why there is none."""
    cells = []
    for row in rows:
        ratio = _at(row, name, *_RATIO[to])
        if ratio:
            lower, median, upper = _quartiles(ratio)
            cells.append(f"{_ratio(median)} ({_ratio(lower)}–{_ratio(upper)})")
        else:
            reasons = ("error", "skipped")
            found = [reason for reason in reasons if _at(row, name, reason)]
            cells.append(found[0] if found else NONE)
    return cells


def _fractions(
    rows: list[dict[str, Any]], rival: str, key: str, *, of: str = OURS
) -> list[str]:
    """A count of ours over the rival's, where both are known."""
    counts = [(_at(row, of, key), _at(row, rival, key)) for row in rows]
    return [
        NONE if ours is None or not theirs else _ratio(ours / theirs)
        for ours, theirs in counts
    ]


def _megabytes(rows: list[dict[str, Any]], name: str) -> list[str]:
    counts = [_at(row, name, "temporary_bytes") for row in rows]
    return [NONE if x is None else _digits(x / 1e6) for x in counts]


def _failures(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each reason why contenders have no time."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        sizes = ", ".join(f"{key} = {size}" for key, size in row["sizes"].items())
        for name, record in row["contenders"].items():
            reason = record.get("error") or record.get("skipped")
            if reason and "which" not in record:
                where = reasons.setdefault((name, reason), [])
                where.append(f"{row['workload']}, {sizes}")
    for (name, reason), where in reasons.items():
        reason = textwrap.shorten(reason, 120, placeholder=" …")
        yield f"- {name} on {'; '.join(where)}: {reason}"


def _quartiles(record: dict[str, float]) -> tuple[float, float, float]:
    return record["lower_quartile"], record["median"], record["upper_quartile"]


def _at(row: dict[str, Any], name: str, *path: str) -> Any:
    """What a row says of a contender, or ``None`` where it says nothing."""
    found = row["contenders"].get(name)
    for key in path:
        found = None if found is None else found.get(key)
    return found


def _ratio(value: float) -> str:
    """Two decimals, or one significant digit of a small ratio."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def _digits(value: float) -> str:
    """Three significant digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
