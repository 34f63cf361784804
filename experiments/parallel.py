"""One run in several processes, each with its share of every minibatch.

Each process keeps all of the parameters, of the optimiser's state and of the data. An
epoch runs over the devices of all of them: each computes its part of the loss, slopes
and curvature of a minibatch, and these are added up.
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

BATCH = "batch"


@contextlib.contextmanager
def joined(options: str, *where: Any) -> Iterator[None]:
    """A context in which JAX sees the devices of all processes.

    An error inside ends this process at once. JAX would have it wait for the others,
    and they wait for it.

    Args:
      options: what all processes must have been started with.
      *where: the coordinator, how many processes there are, and which of them this is.
    """
    jax.distributed.initialize(*where, cluster_detection_method="deactivate")
    try:
        digest = np.frombuffer(hashlib.sha256(options.encode()).digest(), np.uint8)
        message = f"Start all processes with the same options; this one has {options}."
        multihost_utils.assert_equal(digest, message)
        yield
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    jax.distributed.shutdown()


def make_mesh() -> Mesh:
    """All devices of all processes in a row."""
    return Mesh(np.array(jax.devices()), (BATCH,))


def shared_out(batches: Any, mesh: Mesh) -> Any:
    """Arrays ``[batches, batch, …]`` with the examples of each batch over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH))
    return jax.lax.with_sharding_constraint(batches, sharding)


def over_mesh(function: Callable, mesh: Mesh) -> Callable:
    """The function of global arrays as one of local ones, the same in each process."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def to_global(x):
        copies = [jax.device_put(x, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, copies)

    def wrapped(*args):
        results = function(*jax.tree.map(to_global, args))
        return jax.tree.map(lambda x: x.addressable_data(0), results)

    return wrapped


def any_of(signals: list[int]) -> list[int]:
    """The signal that any process has had, in every process."""
    number = multihost_utils.process_allgather(np.int32(max(signals, default=0))).max()
    return [int(number)] if number else []
