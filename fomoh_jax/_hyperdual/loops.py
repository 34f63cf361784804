"""Loops of the library's own, and the chunks that they go over.

JAX's loops compile their body, and know one only if it is the same function object.
A body that closes over a user's function is another one at each call. Called eagerly,
outside of ``jit``, these therefore go round in Python, and compile nothing.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
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


def equal_chunks(n: int, chunk_size: int | None) -> tuple[int, int]:
    """The number of chunks of ``n`` elements, and the size of each.

    All have the same size, at most ``chunk_size``: together they may hold more than
    ``n`` elements.
    """
    count = 1 if chunk_size is None else -(-n // chunk_size)
    return count, -(-n // count)


def overlapping_chunks(n: int, chunk_size: int | None) -> tuple[int, np.ndarray]:
    """The size of chunks of ``n`` elements, and the first element of each.

    The last chunk overlaps the one before it where the size does not divide ``n``.
    """
    count, size = equal_chunks(n, chunk_size)
    return size, np.minimum(np.arange(count) * size, n - size)


def chunks_joined(x: Shaped[Array, "chunks size ..."]) -> Shaped[Array, "_ ..."]:
    """The results of chunks, along one axis."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


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
