"""Reading what the tables wrote as JSON, and cells of a report made of it."""

import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from experiments.benchmarks.measurement import ADJOINT, OURS

Row = dict[str, Any]
Cell = Callable[[Row], str | None]  # of a row; ``None`` where it says nothing

# Where a record has its seconds over those of ours.
_RATIO = {OURS: ("ratio", "seconds"), ADJOINT: ("seconds_over_adjoint",)}


def at(row: Row, name: str, *path: str) -> Any:
    """What a row says of a contender, or ``None`` where it says nothing."""
    found = row["contenders"].get(name)
    for key in path:
        found = None if found is None else found.get(key)
    return found


def time_ratio(
    row: Row, name: str, to: str = OURS
) -> tuple[float, float, float] | None:
    """Lower quartile, median and upper quartile of a contender's time over that of
    ours, paired within a round; ``None`` if it was not timed."""
    found = at(row, name, *_RATIO[to])
    return found and (found["lower_quartile"], found["median"], found["upper_quartile"])


def milliseconds(name: str) -> Cell:
    """The median of a contender's times."""
    return lambda row: _digits(1e3, at(row, name, "seconds", "median"))


def megabytes(name: str) -> Cell:
    """A contender's temporary memory."""
    return lambda row: _digits(1e-6, at(row, name, "temporary_bytes"))


def times(name: str, to: str = OURS) -> Cell:
    """Median and quartiles of a rival's time over ours, or why there is none."""

    def cell(row):
        if not (ratio := time_ratio(row, name, to)):
            return next((x for x in ("error", "skipped") if at(row, name, x)), None)
        lower, median, upper = map(_ratio, ratio)
        return f"{median} ({lower}–{upper})"

    return cell


def fraction(rival: str, key: str, of: str = OURS) -> Cell:
    """A count of ours over the rival's, where both are known."""

    def cell(row):
        ours, theirs = at(row, of, key), at(row, rival, key)
        return None if ours is None or not theirs else _ratio(ours / theirs)

    return cell


def by_place(
    results: Iterable[dict[str, Any]], table: str
) -> dict[tuple[str, ...], list[Row]]:
    """The rows of one table, for each place where they were measured.

    A place is a device, a version of JAX, a precision, and whether the run was quick.
    """
    places: dict[tuple[str, ...], list[Row]] = {}
    for result in results:
        if result["table"] == table:
            env, config = result["environment"], result["config"]
            device = env["cpu"] if env["device"] == "cpu" else env["device"]
            quick = "quick" if config.get("quick") else ""  # other sizes
            place = device, f"jax {env['jax']}", config["precision"], quick
            places.setdefault(place, []).extend(result["rows"])
    return places


def failures(rows: Iterable[Row]) -> Iterator[str]:
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


def _digits(factor: float, value: float | None) -> str | None:
    """Three significant digits, and no exponent."""
    if value is None:
        return None
    value = factor * value
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
