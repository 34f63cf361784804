"""One run in several processes, each with its share of every minibatch.

Each process keeps all of the parameters, of the optimiser's state and of the data. An
epoch runs over the devices of all of them: it takes a minibatch apart, and puts its
loss, slopes and curvature together.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import launcher, rendezvous
from experiments.interruption import Stopped
from experiments.keys import data_as_keys, keys_as_data

BATCH = "batch"


@contextlib.contextmanager
def joined(
    coordinator: str,
    processes: int,
    process_id: int,
    options: dict[str, Any],
    timeout: float,
) -> Iterator[None]:
    """Inside, JAX sees the devices of all processes.

    An error inside ends this process at once: as long as it is there, the others wait
    for it.

    Args: as :func:`experiments.rendezvous.meet`.
    """
    launcher.end_with_launcher()
    rendezvous.meet(coordinator, processes, process_id, options, timeout)
    local = rendezvous.split(coordinator)[0] in rendezvous.LOCAL
    jax.distributed.initialize(
        coordinator,
        processes,
        process_id,
        cluster_detection_method="deactivate",
        coordinator_bind_address=coordinator if local else None,
    )
    try:
        yield
    except Stopped:  # all of them, after the same epoch
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        _end(error, f"process {process_id} of {processes}")
    jax.distributed.shutdown()


def _end(error: BaseException, who: str) -> NoReturn:
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    elif "Gloo" in str(error):
        print(
            f"{who} stops: it has lost another process, which says why if it could "
            f"({str(error)[:200]}).",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # not by way of JAX, which waits for the others


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
