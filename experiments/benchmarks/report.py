"""Markdown tables of the suite's JSON files.

Times are a rival's over ours, paired within a round: how many times as fast ours is.
Counts are ours over the rival's: the fraction that ours needs.
"""

import collections
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from experiments import study
from experiments.benchmarks.columns import COUNTS, NAMES, TABLES
from experiments.benchmarks.measurement import ADJOINT, OURS

Row = dict[str, Any]
Places = dict[tuple[str, ...], list[Row]]


def at(row: Row, name: str, *path: str) -> Any:
    """The entry of a row for a contender, or ``None`` where there is none."""
    found = row["contenders"].get(name)
    for key in path:
        found = None if found is None else found.get(key)
    return found


def time_ratio(row: Row, name: str, to: str = OURS) -> tuple[float, ...] | None:
    """Lower quartile, median and upper quartile of a contender's time over that of
    ours, paired within a round; ``None`` if it was not timed."""
    path = ("seconds_over_adjoint",) if to == ADJOINT else ("ratio", "seconds")
    found = at(row, name, *path)
    return found and (found["lower_quartile"], found["median"], found["upper_quartile"])


def milliseconds(row: Row, name: str) -> str | None:
    """The median of a contender's times."""
    return _digits(1e3, at(row, name, "seconds", "median"))


def megabytes(row: Row, name: str) -> str | None:
    """A contender's temporary memory."""
    return _digits(1e-6, at(row, name, "temporary_bytes"))


def times(row: Row, name: str, to: str = OURS) -> str | None:
    """Median and quartiles of a rival's time over ours, or why there is none."""
    if not (ratio := time_ratio(row, name, to)):
        return next((x for x in ("error", "skipped") if at(row, name, x)), None)
    lower, median, upper = map(_ratio, ratio)
    return f"{median} ({lower}–{upper})"


def cell(row: Row, title: str) -> str | None:
    """The cell of a row under a title, such as "A ms", "A, MB", "A, compile s",
    "A ÷ B" or, for a count, "FLOPs, A ÷ B"."""
    full = lambda name: NAMES.get(name, name.replace("chunks of", f"{OURS}, chunks of"))
    if title.endswith(" ms"):
        return milliseconds(row, full(title.removesuffix(" ms")))
    if title.endswith(", MB"):
        return megabytes(row, full(title.removesuffix(", MB")))
    if title.endswith(", compile s"):
        name = full(title.removesuffix(", compile s"))
        return _digits(1, at(row, name, "compile_seconds"))
    first, second = title.split(" ÷ ")
    count, _, ours = first.partition(", ")
    if count not in COUNTS:
        return times(row, full(first), full(second))
    ours, theirs = (at(row, full(name), COUNTS[count]) for name in (ours, second))
    return None if ours is None or not theirs else _ratio(ours / theirs)


def by_place(results: Iterable[Row], table: str) -> Places:
    """The rows of one table, for each place where they were measured.

    A place is a device, a version of JAX, a precision, and whether the run was quick.
    """
    places: Places = collections.defaultdict(list)
    for result in results:
        if result["table"] == table:
            env, config = result["environment"], result["config"]
            device = env["cpu"] if env["device"] == "cpu" else env["device"]
            quick = "quick" if config.get("quick") else ""  # other sizes
            place = device, f"jax {env['jax']}", config["precision"], quick
            places[place] += result["rows"]
    return places


def _ratio(value: float) -> str:
    """A ratio with two decimals, or one significant digit if it is small."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def _digits(factor: float, value: float | None) -> str | None:
    """A value with three significant digits and no exponent."""
    if value is None:
        return None
    value = factor * value
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


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
            | {title: cell(row, title) for title in titles}
            for row in rows
        )
        for titles in tables
    )


def width(rows: list[Row]) -> list[list[str]]:
    """Times and memory of the chunks, the smallest first, and of nested ``jvp``."""
    names = dict.fromkeys(name for row in rows for name in row["contenders"])
    chunks = [n.removeprefix(f"{OURS}, ") for n in names if n.startswith(f"{OURS}, ")]
    rivals = [*chunks, "nested"]
    ratios = [f"{title} ÷ whole" for title in rivals]
    return [["whole ms", *ratios], [f"{title}, MB" for title in ("whole", *rivals)]]


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """A table of nested ÷ ours in time, with a column for each place where it was
    measured, named by what tells that place from the others."""
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
                (row["workload"], row["sizes"]["k"]): times(row, "nested jvp", to)
                for row in rows
            }
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    frame = pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(keys), dtype=object)
    return study.table(frame.rename_axis(["workload", "k"]).reset_index())


def failures(rows: Iterable[Row]) -> Iterator[str]:
    """One line for each reason why contenders have no time."""
    reasons = collections.defaultdict(list)
    for row in rows:
        sizes = ", ".join(f"{key} = {size}" for key, size in row["sizes"].items())
        for name, record in row["contenders"].items():
            reason = record.get("error") or record.get("skipped")
            if reason and "which" not in record:
                reasons[name, reason].append(f"{row['workload']}, {sizes}")
    for (name, reason), where in reasons.items():
        reason = textwrap.shorten(reason, 120, placeholder=" …")
        yield f"- {name} on {'; '.join(where)}: {reason}"
