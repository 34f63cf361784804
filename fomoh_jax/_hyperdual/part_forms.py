"""Parts of the curvature, for a pass that shares it or bounds its memory.

:class:`Rows` are the shares of several devices, and :class:`Offsets` the chunks of one.
They are two forms because chunks of rows took 3 to 14 % more FLOPs and 10 to 40 % more
temporary memory than chunks of offsets, for an MLP, a CNN and a transformer.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import register_static
from jaxtyping import Array

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.descriptions import Indices
from fomoh_jax._hyperdual.form import Bilinear
from fomoh_jax._hyperdual.index_pairs import IndexPairs
from fomoh_jax._hyperdual.trees import register_tree
from fomoh_jax._hyperdual.vectorise import vectorise
from fomoh_jax._types import Leaf


@register_static
@dataclasses.dataclass(frozen=True)
class Rows(IndexPairs):
    """``v_iᵀ H v_j`` for the first ``rows`` of ``i``, and ``j`` half round the ring.

    A share of the curvature. With directions that are numbered from another one on it
    is another share, by the same program. Coefficient ``q = n * rows + i`` belongs to
    the pair ``(i, (i + n) % k)``.

    Attributes:
      k: number of directions.
      rows: how many of them each share belongs to.
    """

    k: int
    rows: int

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        offsets = np.arange(self.k // 2 + 1)
        i = np.tile(np.arange(self.rows), len(offsets))
        return i, (i + np.repeat(offsets, self.rows)) % self.k

    def _product(self, a: Stack, b: Stack) -> Channel:
        return self._product_by_table(self._first(self.rows, a), self._reached(b))

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        if product.polarise and self.k > 1 and a.present == b.present:
            return super()._bilinear(product, a, b, axis)
        ahead = self._first(self.rows, a), self._reached(b)
        behind = self._reached(a), self._first(self.rows, b)
        return self._by_tables(product, ahead, behind, axis)

    def _reached(self, stack: Stack) -> Stack:
        """The directions of a stack that are the ``j`` of some pair."""
        return self._first(min(self.rows + self.k // 2, self.k), stack)

    def _first(self, n: int, stack: Stack) -> Stack:
        if stack.present is not None:
            return stack
        array = lax.slice_in_dim(stack.array, 0, n, axis=stack.axis)
        return Stack(array, stack.axis, tuple(range(n)), self.k)


@register_tree
@dataclasses.dataclass(frozen=True)
class Offsets(IndexPairs):
    """``v_iᵀ H v_j`` for every ``i`` and ``j = i + offset`` modulo ``k``.

    A part of the curvature, for a pass that bounds its memory: the offsets from 0 to
    ``k // 2`` are all of it, and each chunk of them is a program of the same shapes.
    Coefficient ``q = n * k + i`` belongs to the pair ``(i, (i + start + n) % k)``.

    Attributes:
      k: number of directions.
      count: number of offsets.
      start: the first of them.
    """

    k: int = dataclasses.field(metadata={"static": True})
    count: int = dataclasses.field(metadata={"static": True})
    start: Leaf

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        i = np.tile(np.arange(self.k), self.count)
        offset = self.start + np.repeat(np.arange(self.count), self.k)
        return i, (i + offset) % self.k

    def _product(self, a: Stack, b: Stack) -> Channel:
        return self._product_by_table(a.padded(None, self.k), b.padded(None, self.k))

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        a, b = a.padded(None, self.k), b.padded(None, self.k)
        if product.polarise:
            return super()._bilinear(product, a, b, axis)
        if a.array.size < b.array.size:
            swapped = Bilinear(
                lambda y, x: product(x, y), lambda ys, xs: product.pairwise(xs, ys)
            )
            return self._bilinear(swapped, b, a, axis)
        # One offset after the other, each by moving the smaller operand: for all pairs
        # at once both would be copied.
        a, b = a.moved(0), b.moved(0)
        parts = []
        for offset in (self.start + n for n in range(self.count)):
            ahead = product.pairwise(a.array, jnp.roll(b.array, -offset, 0))
            behind = product.pairwise(a.array, jnp.roll(b.array, offset, 0))
            parts.append(ahead + jnp.roll(behind, -offset, 0))
        return Stack(jnp.concatenate(parts)).moved(axis)

    def _quadratic(self, function, xs, out_axes) -> list[Channel]:
        full = [x.padded(None, self.k) for x in xs]
        return super()._quadratic(function, full, out_axes)


@register_static
@dataclasses.dataclass(frozen=True)
class Block(IndexPairs):
    """``v_iᵀ H w_j`` of some directions with others: a block of the curvature.

    With the standard basis for ``w`` it is the product of the Hessian with the ``v``.
    Coefficient ``q = i * columns + j`` belongs to the pair ``(i, rows + j)``.

    Attributes:
      rows: number of the ``v``, which come first.
      columns: number of the ``w``.
    """

    rows: int
    columns: int

    @property
    def k(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rows + self.columns

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        i, j = np.divmod(np.arange(self.rows * self.columns), self.columns)
        return i, self.rows + j

    def _product(self, a: Stack, b: Stack) -> Channel:
        v, w = self._parts(a)[0], self._parts(b)[1]
        return self._flat(
            jnp.expand_dims(v, a.axis + 1) * jnp.expand_dims(w, a.axis), a.axis
        )

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        # As in Pairs, each vmap sees one stacked operand, and no v is copied for
        # every w.
        (v, w), (v2, w2) = self._parts(a), self._parts(b)
        along = lambda f, axes: vectorise(f, axes, axis)
        ahead = along(along(product, (None, b.axis)), (a.axis, None))(v, w2)
        back = along(along(product, (a.axis, None)), (None, b.axis))(w, v2)
        return self._flat(ahead + back, axis)

    def _parts(self, x: Stack) -> Sequence[Array]:
        """The ``v`` and the ``w`` of a stack."""
        sizes = (self.rows, self.columns)
        return lax.split(x.padded(None, self.k).array, sizes, x.axis)

    def _flat(self, table: Array, axis: int) -> Stack:
        """A table of pairs in two axes as a stack of them."""
        shape = *table.shape[:axis], self.q, *table.shape[axis + 2 :]
        return Stack(table.reshape(shape), axis)
