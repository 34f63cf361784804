"""Loops of the library's own, which compile nothing where nothing is compiled.

JAX's loops compile their body, and know one only if it is the same function object.
A body that closes over a user's function is another one at each call. Called eagerly,
outside of ``jit``, these therefore go round in Python.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, PyTree, Shaped

from fomoh_jax._hyperdual.mesh_axes import in_shard_map, varies_along, varying_alike

T = TypeVar("T")


def map_slices(
    function: Callable[[PyTree], PyTree], xs: PyTree[Shaped[ArrayLike, "n ..."]]
) -> PyTree[Shaped[Array, "n ..."]]:
    """``jax.lax.map``: ``function`` of each slice of ``xs``, its results stacked."""
    if _is_staged():
        return lax.map(function, xs)
    results = [function(jax.tree.map(lambda x: x[i], xs)) for i in range(_length(xs))]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *results)


def sum_slices(
    function: Callable[[PyTree], PyTree], xs: PyTree[Shaped[ArrayLike, "n ..."]]
) -> PyTree[Array]:
    """The sum of ``function`` of each slice of ``xs``, a tree of arrays."""
    if not _is_staged():
        total = function(jax.tree.map(lambda x: x[0], xs))
        for i in range(1, _length(xs)):
            part = function(jax.tree.map(lambda x: x[i], xs))
            total = jax.tree.map(jnp.add, total, part)
        return total

    def add(total, x):
        return jax.tree.map(jnp.add, total, function(x)), None

    first = lambda xs: function(jax.tree.map(lambda x: x[0], xs))
    shapes = jax.eval_shape(first, xs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # Inside a jax.shard_map.
    return lax.scan(add, varying_alike(zeros, varies_along(shapes)), xs)[0]


def while_loop(
    unfinished: Callable[[T], Bool[Array, ""]], iterate: Callable[[T], T], state: T
) -> T:
    """``jax.lax.while_loop``, whose body may close over what varies in a shard_map.

    (JAX asks for a carry of one type, and the type says along which axes it varies.)
    """
    while not _is_staged():
        goes_on = unfinished(state)
        if isinstance(goes_on, Tracer):  # under vmap, each member goes on by itself
            break
        if not jax.device_get(goes_on):
            return state
        state = iterate(state)
    if in_shard_map():
        state = varying_alike(state, varies_along(jax.eval_shape(iterate, state)))
    return lax.while_loop(unfinished, iterate, state)


def _is_staged() -> bool:
    """Whether a program is being traced, so that a loop becomes an equation of it."""
    return isinstance(jnp.zeros(()), Tracer)


def _length(xs: PyTree) -> int:
    return len(jax.tree.leaves(xs)[0])
