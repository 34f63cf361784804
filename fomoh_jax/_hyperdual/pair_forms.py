"""The whole curvature, its diagonal, one pair, or none: coefficients by index pairs."""

import dataclasses

import numpy as np
from jax.tree_util import register_static
from jaxtyping import Array, Inexact

from fomoh_jax._hyperdual.channels import Channel, Stack, stacks_of
from fomoh_jax._hyperdual.descriptions import Indices
from fomoh_jax._hyperdual.form import Bilinear
from fomoh_jax._hyperdual.index_pairs import IndexPairs

# Forms without arrays are static nodes, whose trees compare as the objects do; those
# that have arrays are registered by register_tree, which says why.


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
    is_of_each_alone = True

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

    def cross(self, a: Channel, b: Channel) -> Channel:
        stacks = None if a is b else stacks_of(a, b)
        if stacks is None or stacks[0].present != stacks[1].present:
            return super().cross(a, b)
        axis = max(stack.axis for stack in stacks)
        return self._cross_by_table(*(stack.moved(axis) for stack in stacks))

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        # With two directions, polarisation takes three products instead of four.
        if product.polarise and self.k > 2 and a.present == b.present:
            return super()._bilinear(product, a, b, axis)
        stacks = a, b
        return self._by_tables(product, stacks, stacks, axis)

    def _own(
        self,
        product: Bilinear,
        a: Stack,
        b: Stack,
        products: Inexact[Array, "pairs ..."],
    ) -> Stack:
        return Stack(products[: a.array.shape[0]] / 2)
