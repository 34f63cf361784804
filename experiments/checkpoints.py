"""Checkpoints of a run, by orbax: written whole or not at all."""

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

    Orbax writes each into a folder of another name, and renames it when it is complete.
    Of several processes, one has the folder to itself.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # of a run that was killed
                multiprocessing_options=_alone(),
                create=False,  # orbax leaves it to the caller, unless all take part
            ),
        )

    def close(self) -> None:
        """Nothing is written any more."""
        self._manager.close()

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and drop the oldest of those that are too many."""
        standing = checkpoint.standing
        arrays = keys_as_data((standing.params, standing.state))
        numbers = checkpoint._replace(standing=standing.epoch)._asdict()
        self._manager.save(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), numbers=ocp.args.JsonSave(numbers)
            ),
        )

    def restore(self, like: Standing) -> Checkpoint | None:
        """The newest checkpoint; ``None`` if there is none.

        Args:
          like: a standing of the same model and optimiser, such as a fresh one.
        """
        number = self._manager.latest_step()
        if number is None:
            return None
        template = keys_as_data((like.params, like.state))
        items = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(template), numbers=ocp.args.JsonRestore()
        )
        try:
            read = self._manager.restore(number, args=items)
        except (ValueError, OSError) as error:
            raise SystemExit(
                f"Checkpoint {self._manager.directory / str(number)} cannot be read "
                f"({error}). Delete it to go on from the one before it."
            ) from error
        params, state = data_as_keys(read["arrays"], (like.params, like.state))
        epoch = read["numbers"].pop("standing")
        return Checkpoint(standing=Standing(epoch, params, state), **read["numbers"])


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
