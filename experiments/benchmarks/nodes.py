"""Laplacians of a network that sees each node by itself, and sums over them."""

import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks import workloads
from experiments.benchmarks.kinetic import by_folx, ours
from experiments.benchmarks.measurement import OURS, Contender, Contenders, Row

INPUTS = 4  # of each node
SIZES = ((20, 2), (100, 20))  # nodes and points
QUICK = ((3, 2),)
WAYS = {
    OURS: ours,
    "folx": functools.partial(by_folx, sparsity=0),
    "folx, sparsity 4": functools.partial(by_folx, sparsity=INPUTS),
}


class NodeNetwork(nn.Module):
    """The sum over nodes of ten layers of 100, the same for each node."""

    width: int = 100
    layers: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.reshape(-1, INPUTS)
        for _ in range(self.layers):
            features = nn.tanh(nn.Dense(self.width)(features))
        return jnp.sum(features)


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """A row for each number ``N`` of nodes, at ``B`` points."""
    for n, batch in QUICK if quick else SIZES:
        shape = {"N": n, "B": scale * batch}
        model = NodeNetwork(8, 2) if quick else NodeNetwork()
        make = functools.partial(contenders, model, *shape.values())
        yield Row("network of nodes", shape, make)


def contenders(model: nn.Module, n: int, batch: int) -> Contenders:
    """Value, gradient and Laplacian at every point."""
    x = jnp.asarray(workloads.normal(80, batch, n * INPUTS))
    params = jax.jit(model.init)(jax.random.key(0), x[0])

    def contender(way) -> Contender:
        one = lambda params, x: way(functools.partial(model.apply, params), x)
        return Contender(jax.vmap(one, in_axes=(None, 0)), (params, x))

    return {name: contender(way) for name, way in WAYS.items()}
