"""Random signs, and how they perturb a value."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float


def signs(key: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
    """Random signs, of which one word of the generator makes 32.

    For complex numbers, one of the real and one of the imaginary part.
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        real = jnp.finfo(dtype).dtype
        parts = (signs(of_block(key, i), shape, real) for i in range(2))
        return lax.complex(*parts)
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return (1 - 2 * bits.astype(dtype)).reshape(-1)[:size].reshape(shape)


def of_block(key: Array, index: int | Array) -> Array:
    """The key of the perturbation of a block, or of a loop."""
    return jax.random.fold_in(key, index)


@jax.custom_jvp
def perturbed(scale: Float[Array, ""], x: Array, direction: Array) -> Array:
    """``x`` itself, with a derivative by scale: so that probes share its value."""
    del scale, direction
    return x


@perturbed.defjvp
def _perturbed_jvp(primals, tangents):
    _, x, direction = primals
    by_scale, by_x, _ = tangents
    return x, by_x + (by_scale * direction).astype(x.dtype)
