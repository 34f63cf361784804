"""Laplacians of functions of one vector."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import OURS, Contender, Row


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """Laplacians of a batch, in D dimensions."""
    width = 16 if quick else 64
    for dimension in (3,) if quick else (3, 10, 50):
        make = functools.partial(laplacians, dimension, width, 512 * scale)
        yield Row("Laplacian of a tanh network", {"D": dimension}, make)


def laplacians(dimension: int, width: int, batch: int) -> dict[str, Contender]:
    """Laplacians of a network of three hidden layers at every point of a batch."""
    layers = workloads.dense_layers((dimension, width, width, width, 1))
    args = jax.device_put((workloads.normal(60, batch, dimension), layers))
    along = lambda trace: jax.vmap(
        lambda x, layers: trace(lambda x: network(x, layers), x, None), (0, None)
    )
    names = OURS, "nested jvp", "jet", "folx"
    return {name: Contender(along(ways.TRACES[name]), args) for name in names}


def network(x: jax.Array, layers) -> jax.Array:
    return workloads.apply_dense(layers, x, jnp.tanh)[0]
