"""Reading what the tables wrote as JSON."""

from collections.abc import Iterable
from typing import Any

from experiments.benchmarks.measurement import ADJOINT, OURS

# Where a record has its seconds over those of ours.
_RATIO = {OURS: ("ratio", "seconds"), ADJOINT: ("seconds_over_adjoint",)}


def at(row: dict[str, Any], name: str, *path: str) -> Any:
    """What a row says of a contender, or ``None`` where it says nothing."""
    found = row["contenders"].get(name)
    for key in path:
        found = None if found is None else found.get(key)
    return found


def time_ratio(
    row: dict[str, Any], name: str, *, to: str = OURS
) -> tuple[float, float, float] | None:
    """Lower quartile, median and upper quartile of a contender's time over that of
    ours, paired within a round; ``None`` if it was not timed."""
    found = at(row, name, *_RATIO[to])
    return found and (found["lower_quartile"], found["median"], found["upper_quartile"])


def by_place(
    results: Iterable[dict[str, Any]], table: str
) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The rows of one table, for each place where they were measured.

    A place is a device, a version of JAX, a precision, and whether the run was quick.
    """
    places: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        if result["table"] == table:
            places.setdefault(_place(result), []).extend(result["rows"])
    return places


def _place(result: dict[str, Any]) -> tuple[str, ...]:
    env, config = result["environment"], result["config"]
    device = env["cpu"] if env["device"] == "cpu" else env["device"]
    quick = "quick" if config.get("quick") else ""  # other sizes
    return device, f"jax {env['jax']}", config["precision"], quick
