"""One run in several processes, each with its share of every minibatch.

Each process keeps all of the parameters, of the optimiser's state and of the data. An
epoch runs over the devices of all of them: it takes a minibatch apart, and puts its
loss, slopes and curvature together.
"""

import contextlib
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.interruption import Stopped
from experiments.keys import data_as_keys, keys_as_data

BATCH = "batch"


@contextlib.contextmanager
def joined(
    coordinator: str, processes: int, process_id: int, options: str
) -> Iterator[None]:
    """Inside, JAX sees the devices of all processes.

    An error inside ends this process at once. JAX would have it wait for the others,
    and they wait for it.

    Args:
      coordinator: ``host:port`` of process 0.
      processes: how many there are.
      process_id: of this one, from 0 on.
      options: what all of them must have been started with.

    Raises:
      SystemExit: if another process has other options; this one ends.
    """
    jax.distributed.initialize(
        coordinator, processes, process_id, cluster_detection_method="deactivate"
    )
    try:
        digest = np.frombuffer(hashlib.sha256(options.encode()).digest(), np.uint8)
        digests = multihost_utils.process_allgather(digest)
        if np.any(digests != digest):
            raise SystemExit(
                f"Start all processes with the same options; process {process_id} has "
                f"{options}."
            )
        yield
    except Stopped:  # all of them, after the same epoch
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        if isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    jax.distributed.shutdown()


def make_mesh() -> Mesh:
    """All devices of all processes in a row."""
    return Mesh(np.array(jax.devices()), (BATCH,))


def check_batch_size(batch_size: int, devices: int) -> None:
    """A minibatch is shared out evenly, or not at all."""
    if rest := batch_size % devices:
        below, above = batch_size - rest, batch_size - rest + devices
        raise ValueError(
            f"the batch size must be a multiple of {devices}, the number of devices; "
            f"got {batch_size}: take {f'{below} or ' if below else ''}{above}."
        )


def shared_out(batches: Any, mesh: Mesh) -> Any:
    """Arrays ``[batches, batch, …]`` with the examples of each batch over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH))
    return jax.lax.with_sharding_constraint(batches, sharding)


def over_mesh(function: Callable, mesh: Mesh) -> Callable:
    """The function of global arrays as one of local ones, the same in each process."""
    if mesh.axis_names != (BATCH,):
        raise ValueError(
            f"the mesh must have one axis, {BATCH!r}; it has {mesh.axis_names}: take "
            "parallel.make_mesh()."
        )
    if not (devices := mesh.local_devices):
        raise ValueError(
            f"the mesh has no device of process {jax.process_index()}: make it of all "
            "of jax.devices(), as parallel.make_mesh() does."
        )
    everywhere = NamedSharding(mesh, PartitionSpec())

    def to_global(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            raise ValueError(
                f"an array of {x.aval.str_short()} is spread over the processes as "
                f"{x.sharding}; give each process all of it, as a local array."
            )
        copies = [jax.device_put(x, device) for device in devices]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, copies)

    def to_local(x):
        return x.addressable_data(0)

    def wrapped(*args):
        return jax.tree.map(to_local, function(*jax.tree.map(to_global, args)))

    return wrapped


def from_first(tree: Any) -> Any:
    """A pytree of arrays as process 0 has it, in every process, to the last bit."""
    data = keys_as_data(tree)
    # As bytes: what is sent is a sum with zeros, and -0.0 + 0.0 is not -0.0.
    to_bytes = lambda x: np.frombuffer(x.tobytes(), np.uint8)
    received = multihost_utils.broadcast_one_to_all(jax.tree.map(to_bytes, data))
    from_bytes = lambda x, like: np.frombuffer(
        np.asarray(x).tobytes(), like.dtype
    ).reshape(like.shape)
    return data_as_keys(jax.tree.map(from_bytes, received, data), tree)


def largest(number: int) -> int:
    """Of the numbers of all processes, in every process."""
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
