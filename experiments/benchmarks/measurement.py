"""Compile contenders, count what they need, check that they agree, and time them."""

import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OURS = "fomoh_jax"
# Ours by one reverse pass; its rivals are timed against it, too.
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


Contenders = dict[str, Contender]


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      workload: what is differentiated.
      sizes: what varies between the lines of a workload.
      contenders: makes the contenders, of which ``OURS`` is the first. It is called
        when the row's turn comes, so that only one row's arrays are alive.
      best_of: names for the faster of several contenders.
      timed: if not, contenders are compiled, counted and compared alone.
      double: whether float64 is enabled, as its arrays need.
      tolerance: instead of that of the limits.
    """

    workload: str
    sizes: dict[str, int]
    contenders: Callable[[], Contenders]
    best_of: Mapping[str, Sequence[str]] = MappingProxyType({})
    timed: bool = True
    double: bool = False
    tolerance: float | None = None

    @property
    def name(self) -> str:
        sizes = " ".join(f"{key}={size}" for key, size in self.sizes.items())
        return f"{self.workload} {sizes}"


class Limits(NamedTuple):
    """How much a row may take.

    Attributes:
      repeats: rounds in which each contender is timed once. If 0, contenders are
        compiled and counted, and none is run or compared.
      seconds: stop a row after these, if three rounds are done.
      temporary_bytes: a contender that needs more is not run.
      tolerance: largest difference, relative to the largest element. Rounding is a
        hundredth of it in float32 where nothing cancels; one curvature alone (k = 1)
        can be a small difference of large numbers.
    """

    repeats: int = 15
    seconds: float = 60.0
    temporary_bytes: float = 4e9
    tolerance: float = 1e-3


Records = dict[str, dict[str, Any]]  # what was measured of each contender
Samples = dict[str, np.ndarray]  # its seconds in each round


class DisagreementError(Exception):
    """A contender computed other numbers than ours."""


def measure(row: Row, limits: Limits) -> dict[str, Any]:
    """The row as it is written to JSON.

    Raises:
      DisagreementError: if a contender's numbers are not ours, or are not finite.
    """
    with jax.enable_x64(row.double or jax.config.jax_enable_x64):
        return _measure(row, limits)


def _measure(row: Row, limits: Limits) -> dict[str, Any]:
    contenders = row.contenders()
    assert next(iter(contenders)) == OURS
    records: Records = {}
    running, expected = {}, None
    for name, contender in contenders.items():
        try:
            compiled, records[name] = compile_and_count(contender)
            if not limits.repeats:
                continue
            if (size := records[name]["temporary_bytes"]) > limits.temporary_bytes:
                records[name]["skipped"] = f"{size / 1e9:.1f} GB of temporaries"
                continue
            result = jax.block_until_ready(compiled(*contender.args))
        except Exception as error:
            if name == OURS:
                raise
            records.setdefault(name, {})["error"] = first_line(error)
            continue
        like = expected if contender.agrees else None
        check(row.name, name, result, like, row.tolerance or limits.tolerance)
        expected = result if name == OURS else expected
        running[name] = functools.partial(compiled, *contender.args)
    if row.timed:
        _record_times(records, time_interleaved(running, limits))
    _record_best(records, row.best_of)
    return {"workload": row.workload, "sizes": row.sizes, "contenders": records}


def compile_and_count(contender: Contender) -> tuple[Callable, dict[str, Any]]:
    """The compiled program, and its compile seconds, FLOPs and temporary bytes."""
    jax.clear_caches()  # nothing that another contender has traced is reused
    start = time.perf_counter()
    compiled = jax.jit(contender.function).lower(*contender.args).compile()
    seconds = time.perf_counter() - start
    return compiled, {
        "compile_seconds": rounded(seconds),
        "flops": (compiled.cost_analysis() or {}).get("flops"),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def time_interleaved(running: Mapping[str, Callable], limits: Limits) -> Samples:
    """Seconds of one call of each, ``[rounds]``.

    In every round each runs once, in a new random order, so that other work of the
    machine affects all alike and the ratios within a round can be trusted. In an order
    that rotates each follows the same other, whose data it finds in the caches: after a
    large one, a program of 1 ms seemed 1.4 times as slow.
    """
    calls = {name: calls_per_sample(call) for name, call in running.items()}
    samples: dict[str, list[float]] = {name: [] for name in running}
    orders = np.random.default_rng(0)
    start = time.perf_counter()
    for done in range(limits.repeats):
        if done >= 3 and time.perf_counter() - start > limits.seconds:
            break
        for name in orders.permutation(list(running)):
            if calls[name] > 1:
                sample(running[name], 1)
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
    """Calls that take 10 ms: in less, the clock and the dispatch would be measured."""
    sample(call, 1)
    return min(1000, math.ceil(1e-2 / sample(call, 1)))


def check(row: str, name: str, result: Any, expected: Any, tolerance: float) -> None:
    """Checks that numbers are finite and, if others are expected, equal to these.

    Each array is compared relative to its largest element.
    """
    # numpy compares in complex128, since jax would compile for every shape.
    inexact = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
    arrays, others = (
        [np.asarray(x, np.complex128) for x in filter(inexact, jax.tree.leaves(tree))]
        for tree in (result, expected)
    )
    if not all(np.isfinite(x).all() for x in arrays):
        raise DisagreementError(f"{row}: {name} gives a non-finite number.")
    if expected is None:
        return
    if [x.shape for x in arrays] != [x.shape for x in others]:
        raise DisagreementError(f"{row}: {name} has results of another shape.")
    for index, (a, b) in enumerate(zip(arrays, others)):
        error = np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(float).tiny)
        if error > tolerance:
            raise DisagreementError(
                f"{row}: result {index} of {name} is {error:.1e} away from that of "
                f"{OURS}, relative to the largest element; {tolerance:.0e} is let pass."
            )


def _record_times(records: Records, samples: Samples) -> None:
    for name, seconds in samples.items():
        records[name]["seconds"] = quartiles(seconds)
        records[name]["rounds"] = len(seconds)
        if name != OURS and OURS in samples:
            paired = quartiles(seconds / samples[OURS])
            records[name].setdefault("ratio", {})["seconds"] = paired
        if name != ADJOINT and ADJOINT in samples:
            paired = quartiles(seconds / samples[ADJOINT])
            records[name]["seconds_over_adjoint"] = paired


def _record_best(records: Records, best_of: Mapping[str, Sequence[str]]) -> None:
    for title, names in best_of.items():
        timed = [name for name in names if "seconds" in records.get(name, {})]
        median = lambda name: records[name]["seconds"]["median"]
        best = min(timed, key=median) if timed else names[0]  # it says why none was
        if best in records:
            records[title] = {**records[best], "which": best}


def quartiles(values: np.ndarray) -> dict[str, float]:
    names = "median", "lower_quartile", "upper_quartile"
    return dict(zip(names, map(rounded, np.percentile(values, (50, 25, 75)))))


def rounded(value: float) -> float:
    """Rounds to four digits, which is more than a clock is worth."""
    return float(f"{value:.4g}")


def first_line(error: Exception) -> str:
    """The type and the message, without the path of a module on this machine."""
    line = (str(error).strip().splitlines() or [""])[0]
    line = re.sub(r" \([^()]*[/\\][^()]*\)$", "", line)
    return f"{type(error).__name__}: {line}".rstrip(": ")
