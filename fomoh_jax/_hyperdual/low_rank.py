"""Directions that are matrices of low rank, kept as their factors.

``r (m + n)`` numbers stand for ``m n`` of them, and a product with such a matrix is two
products with its factors, for ``r (m + n)`` operations a row instead of ``m n``.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Inexact

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.descriptions import Alone, Indices, Linear, Product
from fomoh_jax._hyperdual.linear_operations import way
from fomoh_jax._hyperdual.trees import register_tree
from fomoh_jax._hyperdual.vectorise import vectorise


@register_tree
@dataclasses.dataclass(frozen=True, eq=False)
class LowRank(Channel):
    r"""``k`` directions of a matrix leaf, :math:`v_i = U_i V_i^\top`.

    A leaf of ``directions`` in :func:`fomoh_jax.quadratic_model` and its like may be
    such an object instead of an array. It is not multiplied out where a product takes
    the matrix, or its transpose; any other operation stores the directions. A pytree of
    two leaves.

    Attributes:
      left: :math:`U`, shape ``[k, m, r]``.
      right: :math:`V`, shape ``[k, n, r]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import LowRank, quadratic_model
      >>> left, right = jnp.ones((2, 3, 1)), jnp.arange(8.0).reshape(2, 4, 1)
      >>> v = LowRank(left, right)
      >>> print(v.shape, v.dense()[1, 0])
      (2, 3, 4) [4. 5. 6. 7.]
      >>> loss = lambda w, x: jnp.sum(jnp.sin(x @ w))
      >>> w, x = jnp.ones((3, 4)), jnp.arange(3.0)
      >>> print(quadratic_model(loss, (w, x), (v, None)).curvature.shape)
      (2, 2)

    References:
      Sarkar et al., *Evolution Strategies at the Hyperscale*, 2025, arXiv:2511.16652.
    """

    is_stored = False

    left: Inexact[Array, "k m r"]
    right: Inexact[Array, "k n r"]

    @property
    def k(self) -> int:
        return self.left.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.k, self.left.shape[1], self.right.shape[1])

    @property
    def dtype(self) -> DTypeLike:
        return self.left.dtype

    def dense(self) -> Inexact[Array, "{self.k} m n"]:
        """The directions, ``[k, m, n]``."""
        return jnp.einsum("kmr,knr->kmn", self.left, self.right)

    def stored(self) -> Stack:
        return Stack(self.dense())

    def behind(self, first: object) -> "LowRank":
        # The factors are small, and so are copies of them.
        del first
        return self

    def rotated(self, start: Array, n: int) -> "LowRank":
        del n
        return LowRank(jnp.roll(self.left, -start, 0), jnp.roll(self.right, -start, 0))

    def scaled(
        self, coefficient: ArrayLike, multiply: Callable = jnp.multiply
    ) -> Channel:
        if jnp.ndim(coefficient):
            return super().scaled(coefficient, multiply)
        return LowRank(multiply(coefficient, self.left), self.right)

    def mapped(self, function: Callable, axis: int) -> Channel:
        way = self._way_through(function)
        if way is None:
            return super().mapped(function, axis)
        inner, outer, place = way
        part = vectorise(function, (0,), axis)(inner)
        return Stack(_times(part, outer, axis, place + (axis <= place)), axis)

    def crossed_in(
        self,
        product: Product,
        place: int,
        other: Channel,
        pairs: tuple[Indices, Indices],
        axis: int,
    ) -> Channel | None:
        way = self._way_through(product.linears[place]) if product.linears else None
        if way is None or other.is_zero:
            return None
        inner, outer, free = way
        i, j = pairs
        xs = other.whole(self.k, other.axis)
        of = product if place == 1 else lambda x, y: product(y, x)
        # [..., k of the other operand, k of this one, ...]
        row = vectorise(of, (None, 0), axis)
        table = vectorise(row, (xs.axis, None), axis)(xs.array, inner)
        *lead, _, _ = table.shape[: axis + 2]
        flat = table.reshape(*lead, self.k**2, *table.shape[axis + 2 :])
        free += axis <= free

        def products(i: Indices, j: Indices) -> Array:
            """``B(x_i, v_j)``."""
            part = jnp.take(flat, i * self.k + j, axis)
            return _times(part, outer[j], axis, free)

        ahead = products(i, j)
        return Stack(2 * ahead if i is j else ahead + products(j, i), axis)

    def gram(self, dtype: DTypeLike) -> Float[Array, "k k"]:
        products = (
            jnp.einsum("imr,jms->ijrs", x, x, preferred_element_type=dtype)
            for x in (self.left, self.right)
        )
        return jnp.einsum("ijrs,ijrs->ij", *products)

    def combined(
        self, coefficients: Float[Array, " k"], dtype: DTypeLike
    ) -> Inexact[Array, "m n"]:
        left = coefficients[:, None, None] * self.left.astype(coefficients.dtype)
        flat = lambda x: jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
        right = self.right.astype(coefficients.dtype)
        total = jnp.matmul(flat(left), flat(right).T, preferred_element_type=dtype)
        return total.astype(self.dtype)

    def _way_through(self, linear: Callable) -> tuple[Array, Array, int] | None:
        """The factors that a product sums over, the others, and where these go.

        The first are matrices like the whole, with ``r`` instead of the dimension
        that is left; that is the dimension of the result that is given.
        """
        if not isinstance(linear, Linear) or linear.over is None or not linear.goes:
            return None
        place = linear.goes[1 - linear.over]
        if place is None:
            return None
        if linear.over == 0:
            return self.left, self.right, place
        return jnp.swapaxes(self.right, 1, 2), self.left, place


def _times(part: Array, outer: Inexact[Array, "q n r"], axis: int, place: int) -> Array:
    """``Σ_r part[…, r, …] outer[q, n, r]``, with ``q`` at ``axis``, ``n`` at ``place``.

    Written out, since the rank is small, so that XLA makes one loop of it.
    """

    def term(r: int) -> Array:
        of_outer = outer[:, :, r].astype(part.dtype)
        shape = [1] * part.ndim
        shape[axis], shape[place] = of_outer.shape
        if place < axis:
            of_outer = of_outer.T
        taken = lax.slice_in_dim(part, r, r + 1, axis=place)
        return taken * of_outer.reshape(shape)

    return functools.reduce(jnp.add, map(term, range(outer.shape[2])))


@way(LowRank, "transpose")
def _transposed(x: LowRank, operation: Alone) -> list[Channel]:
    swaps = operation.joint.params["permutation"] == (1, 0)
    return [LowRank(x.right, x.left) if swaps else x]


@way(LowRank, "convert_element_type")
def _converted(x: LowRank, operation: Alone) -> list[Channel]:
    dtype = operation.joint.params["new_dtype"]
    return [LowRank(x.left.astype(dtype), x.right.astype(dtype))]


@way(LowRank, "neg")
def _negated(x: LowRank, operation: Alone) -> list[Channel]:
    del operation
    return [LowRank(-x.left, x.right)]
