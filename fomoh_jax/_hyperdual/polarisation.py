"""Polarisation: a symmetric product of two stacks by one product of sums a pair."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.descriptions import Indices
from fomoh_jax._hyperdual.form import Bilinear


def polarised(
    product: Bilinear,
    a: Stack,
    b: Stack,
    pairs: tuple[Indices, Indices],
    own: Callable[[Inexact[Array, "pairs ..."]], Stack],
) -> Inexact[Array, "pairs ..."]:
    """``B(a_i, b_j) + B(a_j, b_i)`` for pairs of indices, of stacks along leading axes.

    With any ``t``, and the products ``B(a_i, b_i)`` that are needed in any case::

      B(a_i + t a_j, b_j + b_i / t) - B(a_i, b_i) / t - t B(a_j, b_j)

    For ``t`` the ratio of the sizes of ``a_i`` and ``a_j``, no term is larger than
    the two that are wanted, so that nothing cancels, however long one direction is
    beside the other.

    Args:
      product: ``B``.
      a: a stack, of which the same are present as of ``b``.
      b: another.
      pairs: where the ``i`` and the ``j`` are stored.
      own: ``B(a_i, b_i)``, given the product of sums for every pair.
    """
    i, j = pairs
    size = jnp.max(jnp.abs(a.array), axis=range(1, a.array.ndim))
    t = lax.stop_gradient(_ratio(size[i], size[j]))
    # A direction with itself is 2 B(a_i, b_i), without any sum.
    same = jnp.asarray(i == j)
    ahead, back = jnp.where(same, 0, t), jnp.where(same, 0, 1 / t)
    twice = jnp.where(same, 2, 1).astype(t.dtype)

    def sums(i, j, ahead, twice, back) -> tuple[Array, Array]:
        left = a.operand(i) + _wide(ahead, a.operand(j))
        return left, _wide(twice, b.operand(j)) + _wide(back, b.operand(i))

    pairs_and_factors = jnp.asarray(i), jnp.asarray(j), ahead, twice, back
    if product.looped:
        products = lax.map(lambda each: product(*sums(*each)), pairs_and_factors)
    else:
        products = product.pairwise(*sums(i, j, ahead, twice, back))
    diagonal = own(products)
    rest = _wide(back, diagonal.operand(i)) + _wide(ahead, diagonal.operand(j))
    return products - rest


def _wide(factor: Array, x: Array) -> Array:
    """The product, with one factor for everything that leads with the same indices."""
    return lax.expand_dims(factor, range(factor.ndim, x.ndim)) * x


def _ratio(x: Float[Array, " q"], y: Float[Array, " q"]) -> Float[Array, " q"]:
    """``x / y``, in bounds that no product leaves; 1 if there is none."""
    ratio = jnp.clip(x / jnp.where(y > 0, y, 1), 1e-6, 1e6)
    ratio = jnp.where(y > 0, ratio, jnp.where(x > 0, 1e6, 1).astype(ratio.dtype))
    return jnp.where(jnp.isnan(ratio), 1, ratio)
