"""Records that are kept as JSON lines, so that a study can be stopped and continued."""

import fcntl
import json
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]


def append(file: Path, record: Record) -> None:
    """Adds a record as the last line of a file.

    A line without an end, which a killed process has left, is removed. The file is
    locked meanwhile, since several processes may add to it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.seek(0)
        lines.truncate(lines.read().rfind(b"\n") + 1)
        lines.write(_line(record).encode())


def read(file: Path) -> list[Record]:
    """Every record of a file, except one that was not finished; none without a file."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def by_run(file: Path, run_of: Callable[[Record], Hashable]) -> dict[Any, Record]:
    """Every record of a file by its run; if a run has several, the last of them.

    Args:
      file: may be absent.
      run_of: the run that a record belongs to.
    """
    return {run_of(record): record for record in read(file)}


def replace(file: Path, records: Iterable[Record]) -> None:
    """Writes a file anew with these records; the file is complete at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(map(_line, records)))
    partial.replace(file)


def number_or_none(x: float) -> float | None:
    """Rounds to six digits, which is what float32 has; JSON knows no infinity."""
    return float(f"{x:.6g}") if np.isfinite(x) else None


def _line(record: Record) -> str:
    """A record as JSON, which knows no NaN and no infinity: they become null."""
    return json.dumps(_known(record), allow_nan=False) + "\n"


def _known(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _known(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_known(value) for value in x]
    return None if isinstance(x, float) and not np.isfinite(x) else x
