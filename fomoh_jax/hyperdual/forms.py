"""Forms: which second-order coefficients a forward pass carries.

A rule never asks which form it is under. It hands the form the tangents of its
operands, and the form answers with the coefficients it wants: ``v_iᵀ H v_j`` for every
pair, for ``i = j`` only, for one pair, or none at all.

Every form here is a list of index pairs ``(i_q, j_q)``; coefficient ``q`` of a number
``x`` is its second derivative along the directions ``i_q`` and ``j_q``. A trace is the
sum over such a list, and each of its products is summed as it is made. With tangents
``x_i`` the rules need three products:

- ``product(a, b)``: ``a_i b_j``, elementwise; of ``x`` with itself it is what a second
  derivative ``φ''(x)`` is multiplied with;
- ``cross(a, b)``: ``a_i b_j + a_j b_i``, elementwise;
- ``bilinear(B, a, b)``: ``B(a_i, b_j) + B(a_j, b_i)`` for any bilinear ``B``;

and, for functions of no special shape, ``quadratic(h, xs)``: ``h(x_i, x_j)`` for a
symmetric bilinear form ``h`` of all the operands together.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import register_dataclass, register_static

from fomoh_jax.hyperdual.number import (
    ZERO,
    Channel,
    Stack,
    Zero,
    add,
    scale,
    vectorise,
)

Indices = np.ndarray | jax.Array


def take(stack: Stack, indices: Indices) -> Stack:
    """The arrays of a stack at ``indices``."""
    size = stack.array.shape[stack.axis]
    if isinstance(indices, np.ndarray) and np.array_equal(indices, np.arange(size)):
        return stack
    at = stack.array.at[(slice(None),) * stack.axis + (indices,)]
    return Stack(at.get(mode="promise_in_bounds"), stack.axis)


def _outer(product: Callable, a: Stack, b: Stack, axis: int) -> jax.Array:
    """``product(a_i, b_j)`` with ``i`` at ``axis`` and ``j`` right after it.

    Each vmap sees one stacked operand at a time, so that a matrix product or a
    convolution folds the stack into its batch or its output features instead of
    becoming a batch of small products, which is what is slow on a CPU.
    """
    rows = vectorise(product, in_axes=(None, b.axis), out_axes=axis)
    return vectorise(rows, in_axes=(a.axis, None), out_axes=axis)(a.array, b.array)


def _products(a: Stack, b: Stack) -> jax.Array:
    """``a_i b_j``, elementwise, ``i`` at the axis that they share and ``j`` behind it.

    Choosing the pairs after the product and not before it takes one gather in the place
    of two, and that one of a product that XLA fuses into it, which on the CPU saves
    time and temporary memory.
    """
    return jnp.expand_dims(a.array, a.axis + 1) * jnp.expand_dims(b.array, b.axis)


class Form(abc.ABC):
    """The second-order coefficients to carry for ``k`` directions.

    Attributes:
      k: number of directions.
      q: number of second-order coefficients.
    """

    k: int

    @property
    @abc.abstractmethod
    def q(self) -> int: ...

    @abc.abstractmethod
    def rows(self, x: Stack) -> Stack:
        """The tangents along the first direction of each pair."""

    @abc.abstractmethod
    def columns(self, x: Stack) -> Stack:
        """The tangents along the second direction of each pair."""

    def product(self, a: Channel, b: Channel) -> Channel:
        """``a_i b_j``, elementwise."""
        if not self.q or isinstance(a, Zero) or isinstance(b, Zero):
            return ZERO
        axis = max(a.axis, b.axis)
        return self._product(a.moved(axis), b.moved(axis))

    def cross(self, a: Channel, b: Channel) -> Channel:
        """``a_i b_j + a_j b_i``, elementwise."""
        if not self.q or isinstance(a, Zero) or isinstance(b, Zero):
            return ZERO
        if a is b:
            return scale(2, self._product(a, a))
        axis = max(a.axis, b.axis)
        return self._cross(a.moved(axis), b.moved(axis))

    def bilinear(
        self,
        product: Callable,
        a: Channel,
        b: Channel,
        axis: int,
        *,
        contract: Callable[[Stack, Stack], jax.Array] | None = None,
    ) -> Channel:
        """``product(a_i, b_j) + product(a_j, b_i)``, stacked along ``axis``.

        ``contract(a, b)`` is ``Σ_i product(a_i, b_i)``, where the rule knows a better
        way to it than the sum of the products, for a form that wants no more.
        """
        if not self.q or isinstance(a, Zero) or isinstance(b, Zero):
            return ZERO
        return self._bilinear(product, a, b, axis)

    def quadratic(
        self,
        function: Callable[..., list[jax.Array]],
        xs: Sequence[Channel],
        zeros: Sequence[Any],
        out_axes: Sequence[int],
    ) -> list[Channel]:
        """``function(*[x_i for x in xs], *[x_j for x in xs])``, symmetric bilinear.

        ``zeros`` are the arguments in the place of zero channels.
        """
        if not self.q or all(isinstance(x, Zero) for x in xs):
            return [ZERO] * len(out_axes)
        axes = [x.axis if isinstance(x, Stack) else None for x in xs]
        pick = lambda side: [
            side(x).array if isinstance(x, Stack) else z for x, z in zip(xs, zeros)
        ]
        arrays = vectorise(function, axes + axes, list(out_axes))(
            *pick(self.rows), *pick(self.columns)
        )
        return [Stack(array, axis) for array, axis in zip(arrays, out_axes)]

    # What a form may do better than by its index pairs; ``a`` and ``b`` share an axis.

    def _product(self, a: Stack, b: Stack) -> Channel:
        return Stack(self.rows(a).array * self.columns(b).array, a.axis)

    def _cross(self, a: Stack, b: Stack) -> Channel:
        ij = self.rows(a).array * self.columns(b).array
        return Stack(ij + self.columns(a).array * self.rows(b).array, a.axis)

    def _bilinear(self, product: Callable, a: Stack, b: Stack, axis: int) -> Channel:
        batched = vectorise(product, in_axes=(a.axis, b.axis), out_axes=axis)
        ij = batched(self.rows(a).array, self.columns(b).array)
        return Stack(ij + batched(self.columns(a).array, self.rows(b).array), axis)


# Forms without arrays are static nodes, whose trees compare as the objects do. As
# registered dataclasses the trees of Pairs(3) and Diagonal(3) would compare equal (jax
# 0.10 to 0.12 at least), and jit would now and then hand one the program of the other.


@register_static
@dataclasses.dataclass(frozen=True)
class FirstOrder(Form):
    """Tangents only: ``k`` directional derivatives and no second-order coefficient."""

    k: int

    @property
    def q(self) -> int:
        return 0

    def rows(self, x: Stack) -> Stack:
        return x

    columns = rows


@register_static
@dataclasses.dataclass(frozen=True)
class Diagonal(Form):
    """``v_iᵀ H v_i`` for each of ``k`` directions."""

    k: int

    @property
    def q(self) -> int:
        return self.k

    def rows(self, x: Stack) -> Stack:
        return x

    columns = rows

    def _cross(self, a: Stack, b: Stack) -> Channel:
        return Stack(2 * (a.array * b.array), a.axis)

    def _bilinear(self, product: Callable, a: Stack, b: Stack, axis: int) -> Channel:
        batched = vectorise(product, in_axes=(a.axis, b.axis), out_axes=axis)
        return Stack(2 * batched(a.array, b.array), axis)


@register_static
@dataclasses.dataclass(frozen=True)
class Cross(Form):
    """``v1ᵀ H v2`` of two directions: the classical hyper-dual number."""

    k = 2

    @property
    def q(self) -> int:
        return 1

    def rows(self, x: Stack) -> Stack:
        return take(x, np.array([0]))

    def columns(self, x: Stack) -> Stack:
        return take(x, np.array([1]))


@register_static
@dataclasses.dataclass(frozen=True)
class Pairs(Form):
    """``v_iᵀ H v_j`` for every ``i <= j``: the whole curvature, each pair once."""

    k: int

    @property
    def q(self) -> int:
        return self.k * (self.k + 1) // 2

    @property
    def indices(self) -> tuple[np.ndarray, np.ndarray]:
        return np.triu_indices(self.k)

    def rows(self, x: Stack) -> Stack:
        return take(x, self.indices[0])

    def columns(self, x: Stack) -> Stack:
        return take(x, self.indices[1])

    def _product(self, a: Stack, b: Stack) -> Channel:
        i, j = self.indices
        return take(self._table(_products(a, b), a.axis), i * self.k + j)

    def _cross(self, a: Stack, b: Stack) -> Channel:
        return self._symmetric(_products(a, b), a.axis)

    def _bilinear(self, product: Callable, a: Stack, b: Stack, axis: int) -> Channel:
        return self._symmetric(_outer(product, a, b, axis), axis)

    def _table(self, products: jax.Array, axis: int) -> Stack:
        """``[*, k, k, *]`` with ``k`` at ``axis`` as a stack of ``k²``."""
        shape = products.shape
        return Stack(
            products.reshape(*shape[:axis], self.k**2, *shape[axis + 2 :]), axis
        )

    def _symmetric(self, products: jax.Array, axis: int) -> Channel:
        """``p_ij + p_ji`` for ``i <= j``."""
        table, (i, j) = self._table(products, axis), self.indices
        return add(take(table, i * self.k + j), take(table, j * self.k + i))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows(Form):
    """``v_iᵀ H v_j`` for the rows ``i`` in ``selected`` and every ``j``.

    A slice of the curvature, for a pass that bounds its memory. Coefficient
    ``q = r * k + j`` belongs to the pair ``(selected[r], j)``.
    """

    k: int = dataclasses.field(metadata={"static": True})
    selected: Indices

    @property
    def q(self) -> int:
        return len(self.selected) * self.k

    def rows(self, x: Stack) -> Stack:
        return take(x, jnp.repeat(jnp.asarray(self.selected), self.k))

    def columns(self, x: Stack) -> Stack:
        return take(x, np.tile(np.arange(self.k), len(self.selected)))

    def _bilinear(self, product: Callable, a: Stack, b: Stack, axis: int) -> Channel:
        ij = _outer(product, take(a, self.selected), b, axis)
        ji = _outer(product, a, take(b, self.selected), axis)
        array = ij + jnp.swapaxes(ji, axis, axis + 1)
        return Stack(
            array.reshape((*array.shape[:axis], self.q, *array.shape[axis + 2 :])), axis
        )


class _Sum(Form):
    """``Σ_q v_iᵀ H v_j`` over index pairs: a single second-order coefficient.

    The sum itself is propagated, never its terms: the products of tangents are all
    that is summed, and what the rules do to seconds they do to one.
    """

    @property
    def q(self) -> int:
        return 1

    def bilinear(
        self,
        product: Callable,
        a: Channel,
        b: Channel,
        axis: int,
        *,
        contract: Callable[[Stack, Stack], jax.Array] | None = None,
    ) -> Channel:
        if isinstance(a, Zero) or isinstance(b, Zero):
            return ZERO
        a, b = self.rows(a), self.columns(b)
        if contract is None:
            batched = vectorise(product, in_axes=(a.axis, b.axis), out_axes=axis)
            total = _total(Stack(batched(a.array, b.array), axis))
        else:
            total = Stack(jnp.expand_dims(contract(a, b), axis), axis)
        return scale(2, total)

    def quadratic(
        self,
        function: Callable[..., list[jax.Array]],
        xs: Sequence[Channel],
        zeros: Sequence[Any],
        out_axes: Sequence[int],
    ) -> list[Channel]:
        terms = super().quadratic(function, xs, zeros, out_axes)
        return [_total(term) if isinstance(term, Stack) else ZERO for term in terms]

    def _product(self, a: Stack, b: Stack) -> Channel:
        return _inner(self.rows(a), self.columns(b))

    def _cross(self, a: Stack, b: Stack) -> Channel:
        return scale(2, self._product(a, b))


def _total(stack: Stack) -> Stack:
    """The sum of the arrays of a stack, as a stack of one."""
    return Stack(jnp.sum(stack.array, stack.axis, keepdims=True), stack.axis)


def _inner(a: Stack, b: Stack) -> Stack:
    """``Σ_i a_i b_i``, elementwise, as a stack of one; the stacks share an axis.

    Written out, as a sum over some √k slices and then over what is left: XLA makes that
    one fused loop with the ``φ''`` that it is multiplied with, where on the CPU a
    reduction stores the products (jax 0.10) or draws the matrix products around it into
    one slow kernel, though one without temporaries (jax 0.12). A vmapped Laplacian of a
    tanh network in 3, 10 and 50 dimensions is up to 1.15, 1.05 and 1.25 times as fast
    under jax 0.10.1, and 1.15, 1.15 and 1.1 times under jax 0.12.
    """
    axis, size = a.axis, a.array.shape[a.axis]
    dtype = jnp.result_type(a.array, b.array)
    # As jnp.sum does, half precision is summed in single.
    wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    width = max(math.isqrt(size), 1)
    slices, rest = divmod(size, width)
    cut = lambda stack: lax.split(
        stack.array.astype(wide), [width] * slices + [rest], axis
    )
    *products, last = (x * y for x, y in zip(cut(a), cut(b)))
    ones = lambda x: lax.split(x, [1] * x.shape[axis], axis)
    terms = [*(ones(sum(products)) if products else ()), *ones(last)]
    if not terms:
        return _total(Stack(last, axis))
    return Stack(sum(terms[1:], terms[0]).astype(dtype), axis)


@register_static
@dataclasses.dataclass(frozen=True)
class Trace(_Sum):
    """``Σ_i v_iᵀ H v_i``: the forward Laplacian (Li et al. 2024, arXiv:2307.08214)."""

    k: int

    def rows(self, x: Stack) -> Stack:
        return x

    columns = rows


@register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedTrace(_Sum):
    """``Σ_ij C_ij v_iᵀ H v_j`` for a symmetric ``C``.

    Attributes:
      weights: ``C``, shape ``[k, k]``.
    """

    weights: jax.Array

    @property
    def k(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.weights)

    def rows(self, x: Stack) -> Stack:
        """``Σ_j C_ij x_j``: summed over one index here, over the other in products."""
        # What this stands for is a sum of products, and as exact as one.
        mixed = jnp.tensordot(
            self.weights.astype(x.array.dtype),
            x.array,
            (1, x.axis),
            precision=lax.Precision.HIGHEST,
        )
        return Stack(mixed).moved(x.axis)

    def columns(self, x: Stack) -> Stack:
        return x
