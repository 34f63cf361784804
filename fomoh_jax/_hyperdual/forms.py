"""Forms: which second-order coefficients a forward pass carries.

A rule never asks which form it is under. It hands the form the tangents of its
operands, and the form answers with the coefficients it wants: ``v_iᵀ H v_j`` for every
pair, for ``i = j`` only, for one pair, or none at all.

Every form here is a list of index pairs ``(i_q, j_q)``; coefficient ``q`` of a number
``x`` is its second derivative along the directions ``i_q`` and ``j_q``. (Their sums are
in :mod:`fomoh_jax._hyperdual.trace_forms`.) With tangents ``x_i`` the rules need three
products:

- ``product(a, b)``: ``a_i b_j``, elementwise; of ``x`` with itself it is what a second
  derivative ``φ''(x)`` is multiplied with;
- ``cross(a, b)``: ``a_i b_j + a_j b_i``, elementwise;
- ``bilinear(B, a, b)``: ``B(a_i, b_j) + B(a_j, b_i)`` for any bilinear ``B``;

and, for functions of no special shape, ``quadratic(h, xs)``: ``h(x_i, x_j)`` for a
symmetric bilinear form ``h`` of all the operands together.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import register_dataclass, register_static

from fomoh_jax._hyperdual.channels import (
    ZERO,
    Channel,
    Indices,
    Stack,
    Zero,
    alike,
    stacks_of,
    vectorise,
)


@dataclasses.dataclass(frozen=True)
class Bilinear:
    """A bilinear function of two arrays, and ways to evaluate it on stacks of them.

    Attributes:
      function: ``B(x, y)``.
      paired: ``B(x_q, y_q)`` of two stacks of equal length, stacked along leading axes.
        By default ``function`` under ``vmap``.
      contracted: ``Σ_q B(x_q, y_q)`` of two stacks, if there is a better way to it than
        the sum of the products.
      polarise: whether one product costs so much more than the sum of its operands that
        fewer products of sums are faster.
    """

    function: Callable
    paired: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    contracted: Callable[[Stack, Stack], jax.Array] | None = None
    polarise: bool = False

    def __call__(self, x: Any, y: Any) -> Any:
        return self.function(x, y)

    def pairwise(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """``B(x_q, y_q)``, all stacked along leading axes."""
        if self.paired is not None:
            return self.paired(x, y)
        return vectorise(self.function, (0, 0), 0)(x, y)


class Form(abc.ABC):
    """The second-order coefficients to carry for ``k`` directions.

    Attributes:
      k: number of directions.
      q: number of second-order coefficients.
      is_reversed: whether a reverse pass follows, for which a ``while`` loop is closed.
    """

    k: int
    is_reversed = False

    @property
    @abc.abstractmethod
    def q(self) -> int: ...

    def scale_seconds(self, coefficient: Any, channel: Channel) -> Channel:
        """``coefficient * x``, elementwise, of second-order coefficients."""
        return channel.scaled(coefficient)

    def product(self, a: Channel, b: Channel) -> Channel:
        """``a_i b_j``, elementwise."""
        stacks = stacks_of(a, b)
        if not self.q or stacks is None:
            return (a if a.is_zero else b).zero()
        axis = max(stack.axis for stack in stacks)
        a, b = (stack.moved(axis) for stack in stacks)
        return self._product(a, b)

    def cross(self, a: Channel, b: Channel) -> Channel:
        """``a_i b_j + a_j b_i``, elementwise."""
        if a is b:
            return 2 * self.product(a, a)
        return self.product(a, b) + self.product(b, a)

    def bilinear(self, product: Callable, a: Channel, b: Channel, axis: int) -> Channel:
        """``product(a_i, b_j) + product(a_j, b_i)``, stacked along ``axis``.

        ``product`` is a function of two arrays; a :class:`Bilinear` says more of it.
        """
        stacks = stacks_of(a, b)
        if not self.q or stacks is None:
            return ZERO
        if not isinstance(product, Bilinear):
            product = Bilinear(product)
        a, b = stacks
        return self._bilinear(product, a, b, axis)

    def quadratic(
        self,
        function: Callable[..., list[jax.Array]],
        xs: Sequence[Channel],
        out_axes: Sequence[int],
    ) -> list[Channel]:
        """``function(*[x_i for x in xs], *[x_j for x in xs])``, symmetric bilinear."""
        xs = alike(xs)
        if not self.q or all(x.is_zero for x in xs):
            return [ZERO] * len(out_axes)
        return self._quadratic(function, xs, out_axes)

    # What a form says. The channels are stored; those of a product share an axis, and
    # those of a quadratic form, of which some but not all may be zero, what is present.

    @abc.abstractmethod
    def _product(self, a: Stack, b: Stack) -> Channel: ...

    @abc.abstractmethod
    def _bilinear(
        self, product: Bilinear, a: Stack, b: Stack, axis: int
    ) -> Channel: ...

    @abc.abstractmethod
    def _quadratic(
        self,
        function: Callable[..., list[jax.Array]],
        xs: Sequence[Zero | Stack],
        out_axes: Sequence[int],
    ) -> list[Channel]: ...


class IndexPairs(Form):
    """A form whose coefficient ``q`` belongs to the directions ``i_q`` and ``j_q``."""

    @property
    @abc.abstractmethod
    def pairs(self) -> tuple[Indices, Indices]:
        """``i_q`` and ``j_q``."""

    @property
    def q(self) -> int:
        return len(self.pairs[0])

    def _product(self, a: Stack, b: Stack) -> Channel:
        present, i, j = self._places(a, b)
        if present == ():
            return a.zero()
        return self._stack(a.operand(i) * b.operand(j), a.axis, present)

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        a, b = a.moved(0), b.moved(0)
        if product.polarise and self.k > 1 and a.present == b.present:
            return self._polarised(product, a, b).moved(axis)
        i, j = self.pairs
        if i is j:
            return 2 * self._pairwise(product.pairwise, a, b, axis)
        swapped = lambda y, x: product.pairwise(x, y)
        ahead = self._pairwise(product.pairwise, a, b, axis)
        return ahead + self._pairwise(swapped, b, a, axis)

    def _pairwise(self, product: Callable, a: Stack, b: Stack, axis: int) -> Channel:
        """``product(a_i, b_j)``, of stacks along leading axes."""
        present, i, j = self._places(a, b)
        if present == ():
            return ZERO
        array = product(a.operand(i), b.operand(j))
        return self._stack(array, 0, present).moved(axis)

    def _stack(
        self, array: jax.Array, axis: int, present: tuple[int, ...] | None
    ) -> Stack:
        """Those coefficients that are present, as a stack of all."""
        return Stack(array, axis, present, None if present is None else self.q)

    def _quadratic(self, function, xs, out_axes) -> list[Channel]:
        xs = [x.moved(0) for x in xs]
        stack = next(x for x in xs if isinstance(x, Stack))
        present, i, j = self._places(stack, stack)
        if present == ():
            return [ZERO] * len(out_axes)
        axes = [x.mapped_axis for x in xs]
        along = lambda places: [x.operand(places) for x in xs]
        arrays = vectorise(function, axes + axes, list(out_axes))(*along(i), *along(j))
        return [self._stack(x, axis, present) for x, axis in zip(arrays, out_axes)]

    def _product_by_table(self, a: Stack, b: Stack) -> Channel:
        # Choosing the pairs after the product and not before it takes one gather in the
        # place of two, and that one of a product that XLA fuses into it.
        axis, width = a.axis, b.array.shape[b.axis]
        table = jnp.expand_dims(a.array, axis + 1) * jnp.expand_dims(b.array, axis)
        flat = lambda i, j: i * width + j
        return self._chosen(table, axis, self._places(a, b), flat)

    def _chosen(
        self, table: jax.Array, axis: int, places: tuple, flat: Callable
    ) -> Channel:
        """Of a table of products, in two axes from ``axis`` on, those of the pairs."""
        present, i, j = places
        if present == ():
            return ZERO
        *lead, rows, columns = table.shape[: axis + 2]
        stack = Stack(
            table.reshape(*lead, rows * columns, *table.shape[axis + 2 :]), axis
        )
        return self._stack(stack.operand(flat(i, j)), axis, present)

    def _by_tables(
        self,
        product: Callable,
        ahead: tuple[Stack, Stack],
        behind: tuple[Stack, Stack] | None,
        axis: int,
    ) -> Channel:
        """``B(a_i, b_j)`` of two stacks, and ``B(a_j, b_i)`` of the same or others.

        All products of two stacks at once. Each vmap sees one stacked operand, so that
        a matrix product or a convolution folds the stack into its batch or its output
        features instead of becoming a batch of small products, which is slow on a CPU.
        """

        def table(a: Stack, b: Stack) -> jax.Array:
            row = vectorise(product, in_axes=(None, b.axis), out_axes=axis)
            both = vectorise(row, in_axes=(a.axis, None), out_axes=axis)
            return both(a.array, b.array)

        (a, b), first = ahead, table(*ahead)
        width = first.shape[axis + 1]
        there = self._chosen(
            first, axis, self._places(a, b), lambda i, j: i * width + j
        )
        (a, b), second = (ahead, first) if behind is None else (behind, table(*behind))
        across = second.shape[axis + 1]
        back = self._chosen(
            second, axis, self._places(b, a), lambda i, j: j * across + i
        )
        return there + back

    def _places(
        self, a: Stack, b: Stack
    ) -> tuple[tuple[int, ...] | None, Indices, Indices]:
        """Which coefficients are not zero, and where their two tangents are stored."""
        i, j = self.pairs
        if a.present is None and b.present is None:
            return None, i, j
        rows = {index: place for place, index in enumerate(a.indices)}
        columns = {index: place for place, index in enumerate(b.indices)}
        found = [
            (q, rows[x], columns[y])
            for q, (x, y) in enumerate(zip(i, j))
            if x in rows and y in columns
        ]
        places = np.array(found, int).reshape(-1, 3)
        present = None if len(found) == len(i) else tuple(places[:, 0].tolist())
        return present, places[:, 1], places[:, 2]

    def _polarised(self, product: Bilinear, a: Stack, b: Stack) -> Stack:
        """``B(a_i, b_j) + B(a_j, b_i)`` by one product of sums for each pair.

        With any ``t``, and the products ``B(a_i, b_i)`` that are needed in any case::

          B(a_i + t a_j, b_j + b_i / t) - B(a_i, b_i) / t - t B(a_j, b_j)

        For ``t`` the ratio of the sizes of ``a_i`` and ``a_j``, no term is larger than
        the two that are wanted, so that nothing cancels, however long one direction is
        beside the other.
        """
        present, i, j = self._places(a, a)
        size = jnp.max(jnp.abs(a.array), axis=range(1, a.array.ndim))
        t = lax.stop_gradient(_ratio(size[i], size[j]))
        # A direction with itself is 2 B(a_i, b_i), without any sum.
        same = jnp.asarray(i == j)
        ahead, back = jnp.where(same, 0, t), jnp.where(same, 0, 1 / t)
        twice = jnp.where(same, 2, 1).astype(t.dtype)
        wide = lambda x: lax.expand_dims(x, range(1, a.array.ndim))
        left = a.operand(i) + wide(ahead) * a.operand(j)
        wide = lambda x: lax.expand_dims(x, range(1, b.array.ndim))
        right = wide(twice) * b.operand(j) + wide(back) * b.operand(i)
        products = product.pairwise(left, right)
        own = self._own(product, a, b, products)
        wide = lambda x: lax.expand_dims(x, range(1, products.ndim))
        rest = wide(back) * own.operand(i) + wide(ahead) * own.operand(j)
        return self._stack(products - rest, 0, present)

    def _own(self, product: Bilinear, a: Stack, b: Stack, products: jax.Array) -> Stack:
        """``B(a_i, b_i)``; ``products`` may hold twice of them."""
        return Stack(product.pairwise(a.array, b.array))


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, in bounds that no product leaves; 1 if there is none."""
    ratio = jnp.clip(x / jnp.where(y > 0, y, 1), 1e-6, 1e6)
    ratio = jnp.where(y > 0, ratio, jnp.where(x > 0, 1e6, 1).astype(ratio.dtype))
    return jnp.where(jnp.isnan(ratio), 1, ratio)


# Forms without arrays are static nodes, whose trees compare as the objects do. As
# registered dataclasses the trees of Pairs(3) and Diagonal(3) would compare equal (jax
# 0.10 to 0.12 at least), and jit would now and then hand one the program of the other.


@register_static
@dataclasses.dataclass(frozen=True)
class FirstOrder(IndexPairs):
    """Tangents only: ``k`` directional derivatives and no second-order coefficient."""

    k: int

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        none = np.arange(0)
        return none, none


@register_static
@dataclasses.dataclass(frozen=True)
class Diagonal(IndexPairs):
    """``v_iᵀ H v_i`` for each of ``k`` directions."""

    k: int

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        each = np.arange(self.k)
        return each, each


@register_static
@dataclasses.dataclass(frozen=True)
class Cross(IndexPairs):
    """``v1ᵀ H v2`` of two directions: the classical hyper-dual number."""

    k = 2

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        return np.array([0]), np.array([1])


@register_static
@dataclasses.dataclass(frozen=True)
class Pairs(IndexPairs):
    """``v_iᵀ H v_j`` for every ``i <= j``: the whole curvature, each pair once.

    Each direction with itself comes first, then the pairs of two.
    """

    k: int

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        each = np.arange(self.k)
        i, j = np.triu_indices(self.k, 1)
        return np.concatenate([each, i]), np.concatenate([each, j])

    def _product(self, a: Stack, b: Stack) -> Channel:
        return self._product_by_table(a, b)

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        if product.polarise and self.k > 1 and a.present == b.present:
            return super()._bilinear(product, a, b, axis)
        return self._by_tables(product, (a, b), None, axis)

    def _own(self, product: Bilinear, a: Stack, b: Stack, products: jax.Array) -> Stack:
        return Stack(products[: a.array.shape[0]] / 2)


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
        """Those of a stack that are a ``j`` of any pair."""
        return self._first(min(self.rows + self.k // 2, self.k), stack)

    def _first(self, n: int, stack: Stack) -> Stack:
        if stack.present is not None:
            return stack
        array = lax.slice_in_dim(stack.array, 0, n, axis=stack.axis)
        return Stack(array, stack.axis, tuple(range(n)), self.k)


@register_dataclass
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
    start: jax.Array

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

    def _parts(self, x: Stack) -> Sequence[jax.Array]:
        """The ``v`` and the ``w`` of a stack."""
        sizes = (self.rows, self.columns)
        return lax.split(x.padded(None, self.k).array, sizes, x.axis)

    def _flat(self, table: jax.Array, axis: int) -> Stack:
        """A table of pairs in two axes as a stack of them."""
        shape = *table.shape[:axis], self.q, *table.shape[axis + 2 :]
        return Stack(table.reshape(shape), axis)
