"""Checkpoints of a run: written whole or not at all, and checked when they are read."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.keys import data_as_keys, keys_as_data
from experiments.training import Standing


class Checkpoint(NamedTuple):
    """All that a run needs to go on as if nothing had happened.

    Attributes:
      seed: the seed that is being run; those below it are done.
      standing: its epochs done, parameters and optimiser state.
      seconds: that it has taken.
      nonfinite: non-finite losses since its last record.
      metrics_size: bytes of the metrics file that were written before this.
    """

    seed: int
    standing: Standing
    seconds: float
    nonfinite: int
    metrics_size: int


class Checkpoints:
    """The last few checkpoints in a folder, each under a number that only grows.

    Of several processes, one has them to itself.
    Orbax writes each into a folder of another name, and renames it when it is complete.
    What is read is compared with a digest that was written along, since a damaged file
    of orbax's can still be a readable one.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # of a run that was killed
                create=False,  # orbax leaves it to the caller, unless all take part
                multiprocessing_options=_alone(),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is written any more."""
        self._manager.close()

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and drop the oldest of those that are too many."""
        arrays = keys_as_data((checkpoint.standing.params, checkpoint.standing.state))
        numbers = {
            "seed": checkpoint.seed,
            "epoch": checkpoint.standing.epoch,
            "seconds": checkpoint.seconds,
            "nonfinite": checkpoint.nonfinite,
            "metrics_size": checkpoint.metrics_size,
        }
        self._manager.save(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                numbers=ocp.args.JsonSave(
                    numbers | {"sha256": _digest(arrays, numbers)}
                ),
            ),
        )

    def restore(
        self,
        like: Standing,
        check: Callable[[Checkpoint], Any] = lambda checkpoint: None,
    ) -> Checkpoint | None:
        """The newest checkpoint that is whole; ``None`` if there is none.

        Those that are not are reported, and moved to the folder ``damaged`` beside this
        one, so that the run can write their numbers again.

        Args:
          like: a standing of the same model and optimiser, such as a fresh one.
          check: raises if a checkpoint will not do.
        """
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                checkpoint = self._read(number, like)
                check(checkpoint)
                return checkpoint
            except Exception as error:  # whatever orbax and what is below it may raise
                reason = str(error).strip().split("\n")[0][:200]
                print(
                    f"Checkpoint {number} is damaged ({type(error).__name__}: "
                    f"{reason}). It is moved to {self._set_aside(number)}, and the one "
                    "before it is tried.",
                    file=sys.stderr,
                )
        return None

    def _read(self, number: int, like: Standing) -> Checkpoint:
        template = keys_as_data((like.params, like.state))
        read = self._manager.restore(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(template),
                numbers=ocp.args.JsonRestore(),
            ),
        )
        numbers = dict(read["numbers"])
        if numbers.pop("sha256") != _digest(read["arrays"], numbers):
            raise ValueError("the contents do not have the SHA-256 that they had")
        params, state = data_as_keys(read["arrays"], (like.params, like.state))
        return Checkpoint(
            numbers["seed"],
            Standing(numbers["epoch"], params, state),
            numbers["seconds"],
            numbers["nonfinite"],
            numbers["metrics_size"],
        )

    def _set_aside(self, number: int) -> Path:
        target = self._folder.parent / "damaged" / str(number)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        os.rename(self._folder / str(number), target)
        self._manager.reload()
        return target


def save_params(path: Path, params: Any) -> None:
    """Write a pytree of arrays as a folder, in one piece, over what may be there."""
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        checkpointer.save(path.absolute(), keys_as_data(params), force=True)


def load_params(path: Path) -> Any:
    """What :func:`save_params` has written, as NumPy arrays in dictionaries."""
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(path.absolute()).item_metadata
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        return checkpointer.restore(path.absolute(), like)


def write_whole(path: Path, content: str) -> None:
    """Write a file that is there with all of its content or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content)
    partial.replace(path)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax otherwise waits for all processes to write the same."""
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}
    )


def _digest(arrays: Any, numbers: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    for path, x in jax.tree.leaves_with_path(arrays):
        digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
