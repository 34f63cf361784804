"""Markdown tables of the suite's JSON files.

Times are a rival's over ours, paired within a round: how many times as fast ours is.
Counts are ours over the rival's: the fraction that ours needs.
"""

import itertools
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments import plotting
from experiments.benchmarks import depth
from experiments.benchmarks.figure import draw
from experiments.benchmarks.measurement import ADJOINT, OURS
from experiments.benchmarks.records import at, by_place, time_ratio

NONE = "–"


def main(
    files: tyro.conf.Positional[tuple[Path, ...]],
    figure: Path | None = None,
    compare: bool = False,
) -> None:
    """Print Markdown tables of JSON files, and draw what they hold into a figure.

    Args:
      files: as the tables write them.
      figure: a PNG; by default ``benchmarks.png`` beside the first file.
      compare: print one table, of the hyperplane files' ratios of time side by side.
    """
    if not files:
        raise SystemExit("report needs the JSON files of some tables.")
    results = [json.loads(path.read_text()) for path in files]
    if compare:
        print(comparison(results))
    else:
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


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """Nested ÷ ours in time for each workload and k, a column for each place where it
    was measured, under what tells that place from the others."""
    timed = [result for result in results if result["config"]["repeats"]]
    places = by_place(timed, "hyperplane")
    if not places:
        raise SystemExit("report --compare needs a hyperplane file that holds times.")
    distinctive = [len(set(parts)) > 1 for parts in zip(*places)]
    tables = {place: {_key(row): row for row in places[place]} for place in places}
    keys = list(dict.fromkeys(key for table in tables.values() for key in table))
    columns = {
        "workload": [workload for workload, _ in keys],
        "k": [str(k) for _, k in keys],
    }
    for title, to in {"nested ÷ ours": OURS, "nested ÷ adjoint": ADJOINT}.items():
        for place, table in tables.items():
            differs = filter(None, itertools.compress(place, distinctive))
            rows = [table.get(key, {"contenders": {}}) for key in keys]
            cells = _ratios(rows, "nested jvp", to=to)
            columns[", ".join([title, *differs])] = cells
    return plotting.table(columns)


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["workload"], row["sizes"]["k"]


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
    megabytes = {
        f"{depth.TITLES[name]}, MB": _megabytes(rows, name) for name in depth.TITLES
    }
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
    medians = [at(row, name, "seconds", "median") for row in rows]
    return [NONE if x is None else _digits(1e3 * x) for x in medians]


def _ratios(rows: list[dict[str, Any]], name: str, *, to: str = OURS) -> list[str]:
    """Median and quartiles of the paired ratio, or why there is none."""
    cells = []
    for row in rows:
        ratio = time_ratio(row, name, to=to)
        if ratio:
            lower, median, upper = ratio
            cells.append(f"{_ratio(median)} ({_ratio(lower)}–{_ratio(upper)})")
        else:
            reasons = ("error", "skipped")
            found = [reason for reason in reasons if at(row, name, reason)]
            cells.append(found[0] if found else NONE)
    return cells


def _fractions(
    rows: list[dict[str, Any]], rival: str, key: str, *, of: str = OURS
) -> list[str]:
    """A count of ours over the rival's, where both are known."""
    counts = [(at(row, of, key), at(row, rival, key)) for row in rows]
    return [
        NONE if ours is None or not theirs else _ratio(ours / theirs)
        for ours, theirs in counts
    ]


def _megabytes(rows: list[dict[str, Any]], name: str) -> list[str]:
    counts = [at(row, name, "temporary_bytes") for row in rows]
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


def _ratio(value: float) -> str:
    """Two decimals, or one significant digit of a small ratio."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def _digits(value: float) -> str:
    """Three significant digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
