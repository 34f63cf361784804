"""Forms that are a list of index pairs, and their products of stacks of tangents.

Coefficient ``q`` of a number ``x`` is its second derivative along the directions
``i_q`` and ``j_q``.
"""

import abc
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack, Zero, first_stack
from fomoh_jax._hyperdual.descriptions import Indices
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.polarisation import polarised
from fomoh_jax._hyperdual.vectorise import vectorise

# The nonzero coefficients, and the places where their two tangents are stored.
Places = tuple[tuple[int, ...] | None, Indices, Indices]


class IndexPairs(Form):
    """A form whose coefficient ``q`` belongs to the directions ``i_q`` and ``j_q``."""

    @property
    @abc.abstractmethod
    def pairs(self) -> tuple[Indices, Indices]:
        """``i_q`` and ``j_q``."""

    @property
    def q(self) -> int:
        return len(self.pairs[0])

    def bilinear(self, product: Callable, a: Channel, b: Channel, axis: int) -> Channel:
        if self.q and isinstance(product, Bilinear):
            for place, (x, other) in enumerate([(a, b), (b, a)]):
                crossed = x.crossed_in(product, place, other, self.pairs, axis)
                if crossed is not None:
                    return crossed
        return super().bilinear(product, a, b, axis)

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

    def _stack(self, array: Array, axis: int, present: tuple[int, ...] | None) -> Stack:
        """The stack of all coefficients, given the array of those that are present."""
        return Stack(array, axis, present, None if present is None else self.q)

    def _quadratic(
        self,
        function: Callable[..., list[Array]],
        xs: Sequence[Zero | Stack],
        out_axes: Sequence[int],
    ) -> list[Channel]:
        xs = [x.moved(0) for x in xs]
        stack = first_stack(xs)
        assert stack is not None
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
        return self._chosen(_outer(a, b), a.axis, self._places(a, b))

    def _cross_by_table(self, a: Stack, b: Stack) -> Channel:
        """``a_i b_j + a_j b_i``, of stacks of which the same are present."""
        return self._chosen(_outer(a, b), a.axis, self._places(a, b), both=True)

    def _by_tables(
        self,
        product: Callable,
        ahead: tuple[Stack, Stack],
        behind: tuple[Stack, Stack],
        axis: int,
    ) -> Channel:
        """``B(a_i, b_j)`` of two stacks, and ``B(a_j, b_i)`` of the same or others."""
        a, b = ahead
        first = self._table(product, a, b, axis)
        if ahead is behind and a.present == b.present:
            return self._chosen(first, axis, self._places(a, b), both=True)
        there = self._chosen(first, axis, self._places(a, b))
        a, b = behind
        second = jnp.swapaxes(self._table(product, a, b, axis), axis, axis + 1)
        return there + self._chosen(second, axis, self._places(b, a))

    def _table(self, product: Callable, a: Stack, b: Stack, axis: int) -> Array:
        """All products of two stacks, in two axes from ``axis`` on.

        Each vmap sees one stacked operand, so that a matrix product or a convolution
        folds the stack into its batch or its output features instead of becoming a
        batch of small products, which is slow on a CPU.
        """
        row = vectorise(product, in_axes=(None, b.axis), out_axes=axis)
        return vectorise(row, in_axes=(a.axis, None), out_axes=axis)(a.array, b.array)

    def _chosen(
        self, table: Array, axis: int, places: Places, *, both: bool = False
    ) -> Channel:
        """The products of the pairs, from a table in two axes from ``axis`` on.

        With ``both``, to each is added the product with the two directions swapped;
        the sum is made before one gather: XLA on the CPU writes down what it gathers.
        """
        present, i, j = places
        if present == ():
            return ZERO
        if both:
            table = table + jnp.swapaxes(table, axis, axis + 1)
        *lead, rows, columns = table.shape[: axis + 2]
        stack = Stack(
            table.reshape(*lead, rows * columns, *table.shape[axis + 2 :]), axis
        )
        return self._stack(stack.operand(i * columns + j), axis, present)

    def _places(self, a: Stack, b: Stack) -> Places:
        """The nonzero coefficients, and the places of the two tangents of each."""
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
        present, i, j = self._places(a, a)
        own = partial(self._own, product, a, b)
        return self._stack(polarised(product, a, b, (i, j), own), 0, present)

    def _own(
        self,
        product: Bilinear,
        a: Stack,
        b: Stack,
        products: Inexact[Array, "pairs ..."],
    ) -> Stack:
        """``B(a_i, b_i)``; ``products`` may hold twice of them."""
        return Stack(product.pairwise(a.array, b.array))


def _outer(a: Stack, b: Stack) -> Array:
    """``a_i b_j`` of two stacks along the same axis, in that axis and the next."""
    return jnp.expand_dims(a.array, a.axis + 1) * jnp.expand_dims(b.array, b.axis)
