"""What a run writes into its folder: metrics, and checkpoints that count on them."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from experiments.checkpoints import Checkpoint, Checkpoints, save_params
from experiments.training import Standing

Record = dict[str, Any]


class Output:
    """The folder of a run, for the one process that writes into it.

    Attributes:
      records: of the metrics file, in its order.
    """

    records: list[Record]

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._log = self._path.open("ab")
        lock(self._log, folder)
        (folder / "checkpoints").mkdir(exist_ok=True)
        self._checkpoints = Checkpoints(folder / "checkpoints")

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpoints.close()
        self._log.close()

    def restore(self, fresh: Standing) -> Checkpoint | None:
        """The last checkpoint, if there is one, with the metrics as they were then."""
        last = self._checkpoints.restore(fresh)
        size = 0 if last is None else last.metrics_size
        if self._log.tell() < size:
            raise SystemExit(
                f"{self._path} has fewer than the {size} bytes that it had at the last "
                "checkpoint. Put it back, or start a new run."
            )
        self._log.truncate(size)  # what came after it will come again
        self._log.seek(size)
        lines = self._path.read_text().splitlines()
        self.records = [json.loads(line) for line in lines]
        return last

    def write(self, record: Record) -> None:
        """A line of metrics."""
        self.records.append(record)
        self._log.write(json.dumps(record).encode() + b"\n")
        self._log.flush()

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        """A checkpoint that counts on the metrics so far."""
        os.fsync(self._log.fileno())
        size = self._log.tell()
        self._checkpoints.save(number, checkpoint._replace(metrics_size=size))

    def save_params(self, seed: int, params: Any) -> None:
        """The last parameters of a seed."""
        save_params(self._folder / "params" / f"seed{seed}", params)


class NoOutput:
    """In the place of :class:`Output` in the processes that write nothing."""

    def __init__(self):
        self.records: list[Record] = []

    def __enter__(self) -> "NoOutput":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def restore(self, fresh: Standing) -> None:
        pass

    def write(self, record: Record) -> None:
        pass

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        pass

    def save_params(self, seed: int, params: Any) -> None:
        pass


def lock(log: BinaryIO, folder: Path) -> None:
    """Until it is closed, or the process ends, however it ends."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        log.close()
        raise SystemExit(f"The run in {folder} is still going on.") from None
