"""Traces: the sum of second-order coefficients, itself propagated, never its terms.

Along a basis ``Σ_i v_iᵀ H v_i`` is the Laplacian; with weights ``Σ_ij C_ij v_iᵀ H v_j``
is the trace of ``C H``. Each product of tangents is summed as it is made, and what the
rules do to seconds they do to one array.
"""

import abc
import dataclasses

import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_static

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.sums import sum_of_products
from fomoh_jax._hyperdual.trees import register_tree
from fomoh_jax._hyperdual.vectorise import vectorise
from fomoh_jax._types import Leaf


class _Sum(Form):
    """``Σ_ij C_ij v_iᵀ H v_j``: a single second-order coefficient."""

    @property
    def q(self) -> int:
        return 1

    @abc.abstractmethod
    def weighted(self, x: Stack) -> Stack:
        """``Σ_j C_ij x_j``: summed over one index here, over the other in products."""

    def _of_own(self, products: Channel) -> Channel:
        return products.summed()

    def cross(self, a: Channel, b: Channel) -> Channel:
        return 2 * self.product(a, b)

    def _product(self, a: Stack, b: Stack) -> Channel:
        a, b = self.weighted(a.padded(None, self.k)), b.padded(None, self.k)
        return Stack(sum_of_products(a.array, b.array, a.axis), a.axis)

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        a, b = self.weighted(a.padded(None, self.k)), b.padded(None, self.k)
        if product.contracted is not None:
            total = product.contracted(a, b)
        else:
            terms = product.pairwise(a.moved(0).array, b.moved(0).array)
            total = jnp.sum(terms, axis=0)
        return 2 * Stack(jnp.expand_dims(total, axis), axis)

    def _quadratic(self, function, xs, out_axes) -> list[Channel]:
        full = [x.padded(None, self.k) for x in xs]
        mixed = [x if x.is_zero else self.weighted(x.stacked()) for x in full]
        axes = [x.mapped_axis for x in full]
        operands = [x.operand() for x in (*mixed, *full)]
        arrays = vectorise(function, axes + axes, list(out_axes))(*operands)
        return [
            Stack(jnp.sum(array, axis, keepdims=True), axis)
            for array, axis in zip(arrays, out_axes)
        ]


@register_static
@dataclasses.dataclass(frozen=True)
class Trace(_Sum):
    """``Σ_i v_iᵀ H v_i``: the forward Laplacian (Li et al. 2024, arXiv:2307.08214)."""

    k: int
    is_of_each_alone = True

    def weighted(self, x: Stack) -> Stack:
        return x


@register_tree
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
        # The result stands for a sum of products, and is to be as exact as one.
        mixed = jnp.tensordot(
            self.weights.astype(x.array.dtype),
            x.array,
            (1, x.axis),
            precision=lax.Precision.HIGHEST,
        )
        return Stack(mixed).moved(x.axis)


@register_tree
@dataclasses.dataclass(frozen=True)
class DiagonalTrace(_Sum):
    """``Σ_i c_i v_iᵀ H v_i``: the weights are of any sign, and enter the sums alone.

    Attributes:
      weights: ``c``, shape ``[k]``.
    """

    weights: Leaf
    is_of_each_alone = True

    @property
    def k(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.weights)

    def weighted(self, x: Stack) -> Stack:
        places = [n for n in range(x.array.ndim) if n != x.axis]
        weights = lax.expand_dims(self.weights.astype(x.array.dtype), places)
        return Stack(weights * x.array, x.axis)

    def _of_own(self, products: Channel) -> Channel:
        return products.summed(self.weights)
