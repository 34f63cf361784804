"""The scale of an array: squares of what is tiny or huge leave the range of numbers."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def magnitude(x: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    """The power of two at or below ``max |x|``; to divide by it rounds nothing.

    It stays within the range of the numbers: of zero, it is the smallest normal one.
    """
    limits = jnp.finfo(x.dtype)
    largest = jnp.clip(jnp.max(jnp.abs(x), axis), limits.tiny, limits.max / 4)
    _, exponent = jnp.frexp(lax.stop_gradient(largest))
    return jnp.ldexp(jnp.ones_like(largest), exponent - 1)


def norm(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """``|x|`` along an axis, of numbers of any size."""
    scale = magnitude(x, axis)
    return scale * jnp.linalg.norm(x / jnp.expand_dims(scale, axis), axis=axis)
