"""Compile contenders, count what they need, check that they agree, and time them."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OURS = "fomoh_jax"
# The same numbers by one backward pass; its rivals are timed against it too.
ADJOINT = "fomoh_jax, adjoint"


class Contender(NamedTuple):
    """One way to do the work of a row.

    Attributes:
      function: not jitted.
      args: of the function.
      agrees: whether its results are to be compared with those of the first.
    """

    function: Callable
    args: tuple
    agrees: bool = True


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      workload: what is differentiated.
      sizes: what varies between the lines of a workload.
      contenders: makes the contenders, of which ``OURS`` is the first. It is called
        when the row's turn comes, so that only one row's arrays are alive.
      best_of: names for the faster of several contenders.
      timed: if not, contenders are compiled, counted and compared alone.
    """

    workload: str
    sizes: dict[str, int]
    contenders: Callable[[], dict[str, Contender]]
    best_of: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    timed: bool = True

    @property
    def name(self) -> str:
        sizes = " ".join(f"{key}={size}" for key, size in self.sizes.items())
        return f"{self.workload} {sizes}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a row may take.

    Attributes:
      repeats: rounds in which each contender is timed once. If 0, contenders are
        compiled and counted, and none is run or compared.
      seconds: stop a row after these, if three rounds are done.
      temporary_bytes: a contender that needs more is not run.
      tolerance: largest difference, relative to the largest element.
    """

    repeats: int = 15
    seconds: float = 60.0
    temporary_bytes: float = 4e9
    tolerance: float = 1e-3


class DisagreementError(Exception):
    """A contender computed other numbers than ours."""


def measure(row: Row, limits: Limits) -> dict[str, Any]:
    """The row as it is written to JSON.

    Raises:
      DisagreementError: if a contender's numbers are not ours, or are not finite.
    """
    contenders = row.contenders()
    assert next(iter(contenders)) == OURS
    records: dict[str, dict[str, Any]] = {}
    running, expected = {}, None
    for name, contender in contenders.items():
        try:
            compiled, records[name] = compile_and_count(contender)
            if not limits.repeats:
                continue
            if records[name]["temporary_bytes"] > limits.temporary_bytes:
                records[name]["skipped"] = (
                    f"{records[name]['temporary_bytes'] / 1e9:.1f} GB of temporaries"
                )
                continue
            result = jax.block_until_ready(compiled(*contender.args))
        except Exception as error:
            if name == OURS:
                raise
            records.setdefault(name, {})["error"] = _first_line(error)
            continue
        _check_finite(row.name, name, result)
        if contender.agrees:
            expected = result if expected is None else expected
            check_agreement(row.name, name, result, expected, limits.tolerance)
        running[name] = functools.partial(compiled, *contender.args)
    if row.timed:
        _record_times(records, time_interleaved(running, limits))
    _record_best(records, row.best_of)
    return {"workload": row.workload, "sizes": row.sizes, "contenders": records}


def compile_and_count(contender: Contender) -> tuple[Callable, dict[str, Any]]:
    """The compiled program, and its compile seconds, FLOPs and temporary bytes."""
    jax.clear_caches()  # what another contender has traced must not come for free
    start = time.perf_counter()
    compiled = jax.jit(contender.function).lower(*contender.args).compile()
    seconds = time.perf_counter() - start
    cost = compiled.cost_analysis()
    if isinstance(cost, list):  # one dictionary per program on some backends
        (cost,) = cost
    memory = compiled.memory_analysis()
    return compiled, {
        "compile_seconds": rounded(seconds),
        "flops": (cost or {}).get("flops"),
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def time_interleaved(
    running: Mapping[str, Callable], limits: Limits
) -> dict[str, np.ndarray]:
    """Seconds of one call of each, ``[rounds]``.

    In every round each runs once, in an order that rotates, so that whatever else the
    machine does falls on all alike and the ratios within a round can be trusted.
    """
    calls = {name: calls_per_sample(call) for name, call in running.items()}
    names = list(running)
    samples: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for round_number in range(limits.repeats):
        if round_number >= 3 and time.perf_counter() - start > limits.seconds:
            break
        first = round_number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            samples[name].append(sample(running[name], calls[name]))
    return {name: np.array(seconds) for name, seconds in samples.items()}


def sample(call: Callable, calls: int) -> float:
    """Mean seconds of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def calls_per_sample(call: Callable) -> int:
    """Enough for 5 ms, below which the clock and the dispatch are what is measured."""
    sample(call, 1)
    return min(1000, math.ceil(5e-3 / sample(call, 1)))


def check_agreement(
    row: str, contender: str, result: Any, expected: Any, tolerance: float
) -> None:
    """Each array is compared relative to its largest element."""
    pairs = itertools.zip_longest(jax.tree.leaves(result), jax.tree.leaves(expected))
    for index, (a, b) in enumerate(pairs):
        if a is None or b is None or a.shape != b.shape:
            raise DisagreementError(f"{row}: {contender} has results of another shape.")
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(float).tiny)
        if not error <= tolerance:
            raise DisagreementError(
                f"{row}: result {index} of {contender} is {error:.1e} away from that "
                f"of {OURS}, relative to the largest element; {tolerance:.0e} is let "
                "pass."
            )


def _check_finite(row: str, contender: str, result: Any) -> None:
    inexact = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
    for leaf in filter(inexact, jax.tree.leaves(result)):
        # In numpy, float64: an operation of jax would be compiled for every shape.
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise DisagreementError(f"{row}: {contender} gives a non-finite number.")


def _record_times(
    records: dict[str, dict[str, Any]], samples: Mapping[str, np.ndarray]
) -> None:
    for name, seconds in samples.items():
        records[name]["seconds"] = quartiles(seconds)
        records[name]["rounds"] = len(seconds)
        if name != OURS and OURS in samples:
            paired = quartiles(seconds / samples[OURS])
            records[name].setdefault("ratio", {})["seconds"] = paired
        if name != ADJOINT and ADJOINT in samples:
            records[name]["seconds_over_adjoint"] = quartiles(
                seconds / samples[ADJOINT]
            )


def _record_best(
    records: dict[str, dict[str, Any]], best_of: Mapping[str, Sequence[str]]
) -> None:
    for title, names in best_of.items():
        timed = [name for name in names if "seconds" in records.get(name, {})]
        if timed:
            best = min(timed, key=lambda name: records[name]["seconds"]["median"])
            records[title] = {**records[best], "which": best}
        elif names[0] in records:  # none could be run: the first says why
            records[title] = {**records[names[0]], "which": names[0]}


def quartiles(values: np.ndarray) -> dict[str, float]:
    lower, median, upper = np.percentile(values, (25, 50, 75))
    return {
        "median": rounded(median),
        "lower_quartile": rounded(lower),
        "upper_quartile": rounded(upper),
    }


def rounded(value: float) -> float:
    """Four digits: more than a clock is worth."""
    return float(f"{value:.4g}")


def _first_line(error: Exception) -> str:
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0] if message else ''}".rstrip(": ")
