"""Hessians of scalars at a point, and at every point of a batch."""

import functools
from collections.abc import Iterator

import jax

import fomoh_jax
from experiments.benchmarks import workloads
from experiments.benchmarks.measurement import ADJOINT, OURS, Contender, Contenders, Row
from experiments.benchmarks.objectives import OBJECTIVES
from fomoh_jax import plans

FORWARD = "fomoh_jax, forward"
DIMENSIONS = {
    "logistic regression": (20, 200),
    "tanh network": (20, 200, 1000),
    "gelu network": (20, 200),
    "Gaussian process": (12,),
    "log-sum-exp": (20, 200),
    "Rosenbrock": (20, 200),
}
QUICK = {"Gaussian process": (4,)}
BATCHES = {"tanh network": 16}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """Rows at one point in D dimensions, and at B points in the fewest."""
    for name, dimensions in (QUICK if quick else DIMENSIONS).items():
        for dimension in dimensions:
            make = functools.partial(contenders, name, dimension)
            yield Row(name, {"D": dimension, "B": 1}, make)
    for name, batch in ({} if quick else BATCHES).items():
        dimension = DIMENSIONS[name][0]
        make = functools.partial(contenders, name, dimension, scale * batch)
        yield Row(name, {"D": dimension, "B": scale * batch}, make)


def contenders(name: str, dimension: int, batch: int | None = None) -> Contenders:
    """Hessians of the same function; ours by the plan that it chooses, and by two."""
    fun, data = OBJECTIVES[name]
    shape = (dimension,) if batch is None else (batch, dimension)
    args = jax.device_put((workloads.normal(60, *shape), *data(dimension)))
    axes = 0, *[None] * (len(args) - 1)
    functions = {
        OURS: fomoh_jax.hessian(fun),
        FORWARD: fomoh_jax.hessian(fun, plan=plans.forward()),
        ADJOINT: fomoh_jax.hessian(fun, plan=plans.adjoint()),
        "jax.hessian": jax.hessian(fun),
        "nested jvp": jax.jacfwd(jax.jacfwd(fun)),
    }
    mapped = lambda way: way if batch is None else jax.vmap(way, axes)
    return {name: Contender(mapped(way), args) for name, way in functions.items()}
