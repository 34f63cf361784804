"""Many random directions in one pass, or a chunk of them at a time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Key, PyTree, Shaped, UInt32

from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax._hyperdual.loops import (
    chunks_joined,
    equal_chunks,
    map_slices,
    sum_slices,
)
from fomoh_jax.curvature._scaling import norm

# Typed or legacy.
Keys = Key[Array, " n"] | UInt32[Array, "n _"]


class Estimate(NamedTuple):
    """The mean of independent samples, and how far it may be off.

    Attributes:
      value: the mean of the samples.
      standard_error: the standard error of ``value``: the standard deviation of the
        samples divided by the square root of their number. It has the structure and
        shapes of ``value``.
    """

    value: PyTree[Array]
    standard_error: PyTree[Array]


def check_sizes(probes: int, chunk_size: int | None, name: str = "probes") -> int:
    """A number of probes, or as ``name`` says, whose spread gives a standard error.

    Raises:
      TypeError: if it or the size of a chunk is no Python integer.
      ValueError: if it is less than 2, or the size of a chunk less than 1.
    """
    if chunk_size is not None:
        check_size("chunk_size", chunk_size)
    probes = check_size(name, probes)
    if probes < 2:
        raise ValueError(
            f"{name} must be at least 2, because their spread gives the standard "
            f"error; got {probes}."
        )
    return probes


def gaussian(keys: Keys, size: int, dtype: DTypeLike) -> Float[Array, "n {size}"]:
    """``[n, size]``, a vector a key, so that chunks of any size have the same ones."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,), dtype))(keys)


def rademacher(keys: Keys, size: int, dtype: DTypeLike) -> Float[Array, "n {size}"]:
    """Like :func:`gaussian`, with random signs."""
    return jax.vmap(lambda key: jax.random.rademacher(key, (size,), dtype))(keys)


def stacked(
    function: Callable[[Array], PyTree[Shaped[Array, "n ..."]]],
    xs: Shaped[Array, "n ..."],
    chunk_size: int | None,
) -> PyTree[Shaped[Array, "n ..."]]:
    """``function(xs)``, ``[n, …]``, at most ``chunk_size`` rows at a time."""
    chunks = _in_chunks(xs, chunk_size)
    if chunks is None:
        return function(xs)
    parts = map_slices(function, chunks[0])
    return jax.tree.map(lambda part: chunks_joined(part)[: len(xs)], parts)


def summed(
    function: Callable, xs: PyTree[Shaped[Array, "n ..."]], chunk_size: int | None
) -> PyTree[Array]:
    """``function(xs, present)``, a tree of sums over the rows that are present."""
    n = len(jax.tree.leaves(xs)[0])
    chunks = _in_chunks(xs, chunk_size)
    if chunks is None:
        return function(xs, jnp.ones(n, bool))
    return sum_slices(lambda chunk: function(*chunk), chunks)


def mean_and_error(
    total: Float[Array, "*s"], squares: Float[Array, "*s"], n: int
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Mean and standard error of ``n`` samples, from their sum and that of squares.

    The squares must be within the range of the numbers.
    """
    mean = total / n
    variance = jnp.maximum(squares / n - mean**2, 0) / (n - 1)
    return mean, jnp.sqrt(variance)


def estimated(
    samples: Float[Array, "n *s"],
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Mean and standard error of samples ``[n, …]``, of numbers of any size."""
    n, mean = len(samples), jnp.mean(samples, 0)
    return mean, norm(samples - mean[None], 0) / (n * (n - 1)) ** 0.5


def _in_chunks(
    xs: PyTree[Shaped[Array, "n ..."]], chunk_size: int | None
) -> tuple[PyTree[Array], Bool[Array, "chunks size"]] | None:
    """Chunks of one size, and which of their rows are no padding; None if one is all.

    The padding repeats the first rows, so that it is as finite as they are.
    """
    n = len(jax.tree.leaves(xs)[0])
    if chunk_size is None or chunk_size >= n:
        return None
    count, size = equal_chunks(n, chunk_size)
    rows = np.arange(count * size).reshape(count, size)
    return jax.tree.map(lambda x: x[rows % n], xs), jnp.asarray(rows < n)
