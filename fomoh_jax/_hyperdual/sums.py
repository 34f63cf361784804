"""Sums over directions, in a way that XLA on the CPU computes in one loop."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from fomoh_jax._types import in_dtype

# XLA on the CPU sums more terms than these in windows, for which it stores them; a sum
# of so many is one loop with the products that are its terms.
_TERMS = 32


def total(x: Array, axis: int) -> Array:
    """``Σ_i x_i`` along an axis, which is kept, with size 1."""
    return _in_parts(lambda x: x, axis, x)


def sum_of_products(a: Array, b: Array, axis: int) -> Array:
    """``Σ_i a_i b_i`` along an axis, elementwise; the axis is kept, with size 1."""
    return _in_parts(jnp.multiply, axis, a, b)


def _in_parts(term: Callable[..., Array], axis: int, *xs: Array) -> Array:
    size, dtype = xs[0].shape[axis], jnp.result_type(*xs)
    # As jnp.sum does, half precision is summed in single.
    wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    count = max(-(-size // _TERMS), 1)
    ends = [size * n // count for n in range(count + 1)]
    widths = [end - start for start, end in itertools.pairwise(ends)]
    cut = [lax.split(in_dtype(x, wide), widths, axis) for x in xs]
    # (jnp.sum would make a weak type strong.)
    summed = lambda x: lax.expand_dims(lax.reduce_sum(x, [axis]), [axis])
    parts = [summed(term(*terms)) for terms in zip(*cut)]
    if count > 1:
        # All before anything else, so that nothing holds the terms for longer.
        parts = lax.optimization_barrier(parts)
    return in_dtype(sum(parts[1:], parts[0]), dtype)
