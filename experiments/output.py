"""The files that a run writes into its folder: metrics, checkpoints, parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments import records
from experiments.records import Record
from experiments.training import Standing


class Output:
    """The folder of a run, for the one process that writes into it.

    Attributes:
      records: of the metrics file, in its order.
    """

    records: list[Record]

    def __init__(self, folder: Path, earlier: Sequence[Record]):
        self._folder, self.records = folder, list(earlier)
        self._checkpoints = _checkpoints(folder, cleanup_tmp_directories=True)

    def close(self) -> list[Record]:
        """Ends the writing, and returns the records."""
        self._checkpoints.close()
        return self.records

    def write(self, record: Record) -> None:
        """Adds a line of metrics, and drops lines that followed a last checkpoint."""
        self.records.append(record)
        records.replace(self._folder / "metrics.jsonl", self.records)

    def save(self, number: int, standing: Standing) -> None:
        """Writes a checkpoint with the metrics so far. The numbers must increase."""
        numbers = standing._replace(records=self.records)._asdict()
        arrays = keys_as_data({name: numbers.pop(name) for name in ("params", "state")})
        del numbers["losses"]
        arrays, numbers = ocp.args.StandardSave(arrays), ocp.args.JsonSave(numbers)
        items = ocp.args.Composite(arrays=arrays, numbers=numbers)
        self._checkpoints.save(number, args=items)

    def save_params(self, seed: int, params: Any) -> None:
        """Writes the last parameters of a seed, and replaces any that are there."""
        path = (self._folder / "params" / f"seed{seed}").absolute()
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
            checkpointer.save(path, keys_as_data(params), force=True)


def restore(folder: Path, fresh: Standing) -> Standing:
    """The standing at the last checkpoint of a folder, or a fresh one if it has none.

    Args:
      folder: of the run.
      fresh: a start with the same model and optimiser.
    """
    with _checkpoints(folder) as checkpoints:
        if checkpoints.latest_step() is None:
            return fresh
        like = {"params": fresh.params, "state": fresh.state}
        arrays = ocp.args.StandardRestore(keys_as_data(like))
        items = ocp.args.Composite(arrays=arrays, numbers=ocp.args.JsonRestore())
        read = checkpoints.restore(checkpoints.latest_step(), args=items)
    return fresh._replace(**data_as_keys(read["arrays"], like), **read["numbers"])


def _checkpoints(folder: Path, **options: Any) -> ocp.CheckpointManager:
    """The manager of the last three checkpoints, each of which has a number.

    Orbax writes each into a folder of another name, and renames it when it is complete.
    One of several processes has the folder to itself.
    """
    path = (folder / "checkpoints").absolute()
    path.mkdir(exist_ok=True)  # orbax leaves it to the caller, unless all take part
    options = ocp.CheckpointManagerOptions(
        max_to_keep=3,
        enable_async_checkpointing=False,
        multiprocessing_options=_alone(),
        create=False,
        **options,
    )
    return ocp.CheckpointManager(path, options=options)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Tells Orbax not to wait for other processes to write the same."""
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}
    )


def keys_as_data(tree: Any) -> Any:
    """NumPy arrays, and typed PRNG keys as the numbers that they stand for.

    Orbax refuses the local arrays of one process among several.
    """
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree
    )


def data_as_keys(tree: Any, like: Any) -> Any:
    """The inverse of :func:`keys_as_data`, with the keys where ``like`` has them."""

    def convert(x, like):
        if _is_key(like):
            return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like))
        return jnp.asarray(x, like.dtype)

    return jax.tree.map(convert, tree, like)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
