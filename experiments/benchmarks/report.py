"""Markdown tables of the suite's JSON files.

Times are a rival's over ours, paired within a round: how many times as fast ours is.
Counts are ours over the rival's: the fraction that ours needs.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from experiments import plotting, study
from experiments.benchmarks import depth
from experiments.benchmarks.figure import draw
from experiments.benchmarks.measurement import ADJOINT, OURS
from experiments.benchmarks.records import (
    Cell,
    Row,
    by_place,
    failures,
    fraction,
    megabytes,
    milliseconds,
    times,
)

NESTED, REVERSE, HESSIAN = "nested jvp", "forward over reverse", "jax.hessian"
COUNTS = {
    "FLOPs": "flops",
    "temporaries": "temporary_bytes",
    "compile time": "compile_seconds",
}
BESIDE_NESTED = {
    "ours ms": milliseconds(OURS),
    "adjoint ms": milliseconds(ADJOINT),
    "nested ms": milliseconds(NESTED),
    "nested ÷ ours": times(NESTED),
    "nested ÷ adjoint": times(NESTED, ADJOINT),
}
COUNTS_BESIDE_NESTED = {
    f"{title}, {way} ÷ nested": fraction(NESTED, key, name)
    for title, key in COUNTS.items()
    for way, name in {"forward": OURS, "adjoint": ADJOINT}.items()
}
# The columns of each of a table's Markdown tables; those of width depend on its rows.
TABLES: dict[str, list[dict[str, Cell]]] = {
    "hyperplane": [
        {
            **BESIDE_NESTED,
            "reverse ÷ ours": times(REVERSE),
            "reverse ÷ adjoint": times(REVERSE, ADJOINT),
            "jet ÷ ours": times("jet"),
        },
        COUNTS_BESIDE_NESTED,
    ],
    "operators": [
        {
            **BESIDE_NESTED,
            "jax.hessian ÷ ours": times(HESSIAN),
            "jax.hessian ÷ adjoint": times(HESSIAN, ADJOINT),
            "jet ÷ ours": times("jet"),
            "folx ÷ ours": times("folx"),
        },
        COUNTS_BESIDE_NESTED,
    ],
    "step": [
        {
            "ours ms": milliseconds(OURS),
            "SGD ms": milliseconds("SGD"),
            "Adam ms": milliseconds("Adam"),
            "SGD ÷ ours": times("SGD"),
            "Adam ÷ ours": times("Adam"),
            "FLOPs, ours ÷ Adam": fraction("Adam", "flops"),
            "temporaries, ours ÷ Adam": fraction("Adam", "temporary_bytes"),
        }
    ],
    "depth": [
        {f"{title}, MB": megabytes(name) for name, title in depth.TITLES.items()}
        | {"FLOPs, ours ÷ nested": fraction(NESTED, "flops")}
    ],
}


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
    print(comparison(results) if compare else "\n\n".join(map(section, results)))
    if drawn := draw(results):
        path = figure or files[0].parent / "benchmarks.png"
        plotting.save(drawn, path)
        print(f"\nfigure: {path}")


def section(result: dict[str, Any]) -> str:
    """A heading, the machine, the tables, and what could not be run."""
    env = result["environment"]
    where = f"{env['cpu']}, {env['cores']} cores"
    if env["device"] != "cpu":
        where = f"{env['device']} ({where})"
    conditions = (
        f"{where}; jax {env['jax']}, {result['config']['precision']}, "
        f"{env['gemm_gflops']:.0f} GFLOP/s in a float32 product of 2048×2048, "
        f"{env['copy_gb_per_second']:.0f} GB/s in a copy; "
        f"commit {env['commit'] or 'unknown'}, {env['date'][:10]}."
    )
    parts = [f"### {result['table']}", conditions, markdown(result)]
    return "\n\n".join([*parts, "\n".join(failures(result["rows"]))]).rstrip("\n")


def markdown(result: dict[str, Any]) -> str:
    """One table or two, each with one line for each row."""
    rows = result["rows"]
    tables = width(rows) if result["table"] == "width" else TABLES[result["table"]]
    return "\n\n".join(
        study.table(
            {"workload": row["workload"]}
            | row["sizes"]
            | {title: cell(row) for title, cell in columns.items()}
            for row in rows
        )
        for columns in tables
    )


def width(rows: list[Row]) -> list[dict[str, Cell]]:
    """Times and memory of the chunks, the smallest first, and of nested ``jvp``."""
    names = dict.fromkeys(name for row in rows for name in row["contenders"])
    chunked = [name for name in names if name.startswith(f"{OURS}, ")]
    rivals = {name.removeprefix(f"{OURS}, "): name for name in chunked}
    rivals["nested"] = NESTED
    ratios = {f"{title} ÷ whole": times(name) for title, name in rivals.items()}
    sizes = {f"{t}, MB": megabytes(n) for t, n in {"whole": OURS, **rivals}.items()}
    return [{"whole ms": milliseconds(OURS), **ratios}, sizes]


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """Nested ÷ ours in time for each workload and k, a column for each place where it
    was measured, under what tells that place from the others."""
    timed = [result for result in results if result["config"]["repeats"]]
    places = by_place(timed, "hyperplane")
    if not places:
        raise SystemExit("report --compare needs a hyperplane file that holds times.")
    distinctive = [len(set(parts)) > 1 for parts in zip(*places)]
    columns = {}
    for title, to in {"nested ÷ ours": OURS, "nested ÷ adjoint": ADJOINT}.items():
        for place, rows in places.items():
            differs = filter(None, itertools.compress(place, distinctive))
            columns[", ".join([title, *differs])] = {
                (row["workload"], row["sizes"]["k"]): times(NESTED, to)(row)
                for row in rows
            }
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    frame = pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(keys), dtype=object)
    return study.table(frame.rename_axis(["workload", "k"]).reset_index())
