"""Hessians and Laplacians of functions of one vector."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

import fomoh_jax
from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import ADJOINT, OURS, Contender, Row
from experiments.rosenbrock import rosenbrock
from fomoh_jax import plans


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """Hessians at a point and Laplacians of a batch, in D dimensions."""
    width = 16 if quick else 64
    at_points = functools.partial(laplacians, batch=512 * scale)
    for name, make, dimensions in (
        ("Hessian of a tanh network", hessians, (10, 100, 500)),
        ("Hessian of Rosenbrock", rosenbrock_hessians, (10, 100, 500)),
        ("Laplacian of a tanh network", at_points, (3, 10, 50)),
    ):
        for dimension in (3,) if quick else dimensions:
            yield Row(name, {"D": dimension}, functools.partial(make, dimension, width))


def hessians(dimension: int, width: int) -> dict[str, Contender]:
    """Of a network of two hidden layers, at one point."""
    layers = workloads.dense_layers((dimension, width, width, 1))
    return _hessians(network, workloads.normal(60, dimension), layers)


def rosenbrock_hessians(dimension: int, width: int) -> dict[str, Contender]:
    """Of a function whose Hessian is sparse, which no contender knows."""
    return _hessians(rosenbrock, workloads.normal(60, dimension))


def laplacians(dimension: int, width: int, batch: int) -> dict[str, Contender]:
    """Of a network of three hidden layers, at every point of a batch."""
    layers = workloads.dense_layers((dimension, width, width, width, 1))
    args = jax.device_put((workloads.normal(60, batch, dimension), layers))
    along = lambda trace: jax.vmap(
        lambda x, layers: trace(lambda x: network(x, layers), x, None), (0, None)
    )
    names = OURS, "nested jvp", "jet", "folx"
    return {name: Contender(along(ways.TRACES[name]), args) for name in names}


def network(x: jax.Array, layers) -> jax.Array:
    return workloads.apply_dense(layers, x, jnp.tanh)[0]


def _hessians(fun: Callable, *args) -> dict[str, Contender]:
    functions = {
        OURS: fomoh_jax.hessian(fun, plan=plans.forward()),
        ADJOINT: fomoh_jax.hessian(fun, plan=plans.adjoint()),
        "jax.hessian": jax.hessian(fun),
        "nested jvp": jax.jacfwd(jax.jacfwd(fun)),
        "jet": functools.partial(_jet_hessian, fun),
    }
    args = jax.device_put(args)
    return {name: Contender(function, args) for name, function in functions.items()}


def _jet_hessian(fun: Callable, x: jax.Array, *args) -> jax.Array:
    """By polarisation: along each basis vector, and along the sum of each two."""
    basis = jnp.eye(x.size, dtype=x.dtype)
    curvature = lambda v: ways.along_line(lambda x: fun(x, *args), (x,), (v,))[2]
    i, j = jnp.triu_indices(x.size, 1)
    diagonal = jax.vmap(curvature)(basis)
    mixed = jax.vmap(curvature)(basis[i] + basis[j])
    upper = (mixed - diagonal[i] - diagonal[j]) / 2
    return jnp.diag(diagonal).at[i, j].set(upper).at[j, i].set(upper)
