"""Traces: the sum of second-order coefficients, itself propagated, never its terms.

Along a basis ``Σ_i v_iᵀ H v_i`` is the Laplacian; with weights ``Σ_ij C_ij v_iᵀ H v_j``
is the trace of ``C H``. Each product of tangents is summed as it is made, and what the
rules do to seconds they do to one array.
"""

import abc
import dataclasses
import itertools

import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_dataclass, register_static

from fomoh_jax._hyperdual.channels import Channel, Stack, vectorise
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.number import in_dtype
from fomoh_jax._types import Leaf


class _Sum(Form):
    """``Σ_ij C_ij v_iᵀ H v_j``: a single second-order coefficient."""

    @property
    def q(self) -> int:
        return 1

    @abc.abstractmethod
    def weighted(self, x: Stack) -> Stack:
        """``Σ_j C_ij x_j``: summed over one index here, over the other in products."""

    def product(self, a: Channel, b: Channel) -> Channel:
        met = a.met(b)
        total = None if met is None else self._total(met)
        return super().product(a, b) if total is None else total

    def _total(self, products: Channel) -> Channel | None:
        """``Σ_i C_ii x_i`` of what :meth:`Channel.met` returns, if that is all.

        By default it is not: ``C`` may have other entries.
        """
        del products
        return None

    def cross(self, a: Channel, b: Channel) -> Channel:
        return 2 * self.product(a, b)

    def _product(self, a: Stack, b: Stack) -> Channel:
        return _inner(self.weighted(self._full(a)), self._full(b))

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        a, b = self.weighted(self._full(a)), self._full(b)
        if product.contracted is not None:
            total = product.contracted(a, b)
        else:
            terms = product.pairwise(a.moved(0).array, b.moved(0).array)
            total = jnp.sum(terms, axis=0)
        return 2 * Stack(jnp.expand_dims(total, axis), axis)

    def _quadratic(self, function, xs, out_axes) -> list[Channel]:
        full = [x.padded(None, self.k) for x in xs]
        mixed = [self.weighted(x) if isinstance(x, Stack) else x for x in full]
        axes = [x.mapped_axis for x in full]
        operands = [x.operand() for x in (*mixed, *full)]
        arrays = vectorise(function, axes + axes, list(out_axes))(*operands)
        return [
            Stack(jnp.sum(array, axis, keepdims=True), axis)
            for array, axis in zip(arrays, out_axes)
        ]

    def _full(self, x: Stack) -> Stack:
        return x.padded(None, self.k)


@register_static
@dataclasses.dataclass(frozen=True)
class Trace(_Sum):
    """``Σ_i v_iᵀ H v_i``: the forward Laplacian (Li et al. 2024, arXiv:2307.08214)."""

    k: int

    def weighted(self, x: Stack) -> Stack:
        return x

    def _total(self, products: Channel) -> Channel | None:
        return products.summed()


@register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedTrace(_Sum):
    """``Σ_ij C_ij v_iᵀ H v_j`` for a symmetric ``C``.

    Attributes:
      weights: ``C``, shape ``[k, k]``.
    """

    weights: Leaf

    @property
    def k(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.weights)

    def weighted(self, x: Stack) -> Stack:
        # What this stands for is a sum of products, and as exact as one.
        mixed = jnp.tensordot(
            self.weights.astype(x.array.dtype),
            x.array,
            (1, x.axis),
            precision=lax.Precision.HIGHEST,
        )
        return Stack(mixed).moved(x.axis)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagonalTrace(_Sum):
    """``Σ_i c_i v_iᵀ H v_i``: the weights are of any sign, and enter the sums alone.

    Attributes:
      weights: ``c``, shape ``[k]``.
    """

    weights: Leaf

    @property
    def k(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.weights)

    def weighted(self, x: Stack) -> Stack:
        places = [n for n in range(x.array.ndim) if n != x.axis]
        weights = lax.expand_dims(self.weights.astype(x.array.dtype), places)
        return Stack(weights * x.array, x.axis)

    def _total(self, products: Channel) -> Channel | None:
        return products.summed(self.weights)


# XLA on the CPU sums more terms than these in windows, for which it stores them; a sum
# of so many is one loop with the products that are its terms.
_TERMS = 32


def _inner(a: Stack, b: Stack) -> Stack:
    """``Σ_i a_i b_i``, elementwise, as a stack of one; the stacks share an axis."""
    axis, size = a.axis, a.array.shape[a.axis]
    dtype = jnp.result_type(a.array, b.array)
    # As jnp.sum does, half precision is summed in single.
    wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    count = max(-(-size // _TERMS), 1)
    ends = [size * n // count for n in range(count + 1)]
    widths = [end - start for start, end in itertools.pairwise(ends)]
    cut = lambda stack: lax.split(in_dtype(stack.array, wide), widths, axis)
    # (jnp.sum would make a weak type strong.)
    summed = lambda x: lax.expand_dims(lax.reduce_sum(x, [axis]), [axis])
    parts = [summed(x * y) for x, y in zip(cut(a), cut(b))]
    if count > 1:
        # All before anything else, so that nothing holds the factors for longer.
        parts = lax.optimization_barrier(parts)
    return Stack(in_dtype(sum(parts[1:], parts[0]), dtype), axis)
