"""Forms say which second-order coefficients a forward pass carries.

A rule never asks which form it is under. It hands the form the tangents of its
operands, and the form answers with the coefficients it wants: ``v_iᵀ H v_j`` for every
pair, for ``i = j`` only, for one pair, their sum, or none at all. With tangents ``x_i``
the rules need three products:

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

from jaxtyping import Array, ArrayLike, Inexact

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack, Zero, alike, stacks_of
from fomoh_jax._hyperdual.descriptions import Linear
from fomoh_jax._hyperdual.vectorise import vectorise


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
      looped: whether the products of sums are computed one after the other in a loop.
        The sums are then made inside the loop, and one product is compiled.
      linears: the function with the second operand fixed, and with the first one fixed.
    """

    function: Callable
    paired: Callable[[Array, Array], Array] | None = None
    contracted: Callable[[Stack, Stack], Array] | None = None
    polarise: bool = False
    looped: bool = False
    linears: tuple[Linear, Linear] | None = None

    def __call__(self, x: Array, y: Array) -> Array:
        return self.function(x, y)

    def pairwise(
        self, x: Inexact[Array, "q ..."], y: Inexact[Array, "q ..."]
    ) -> Inexact[Array, "q ..."]:
        """``B(x_q, y_q)``, all stacked along leading axes."""
        if self.paired is not None:
            return self.paired(x, y)
        return vectorise(self.function, (0, 0), 0)(x, y)


class Form(abc.ABC):
    """The second-order coefficients to carry for ``k`` directions.

    Attributes:
      k: number of directions.
      q: number of second-order coefficients.
      is_reversed: whether a reverse pass follows, which cannot differentiate a
        ``while`` loop.
      is_of_each_alone: whether second-order coefficients, or what they are sums of, are
        those of a direction with itself.
    """

    k: int
    is_reversed = False
    is_of_each_alone = False

    @property
    @abc.abstractmethod
    def q(self) -> int:
        """The number of second-order coefficients."""

    def scale_seconds(self, coefficient: ArrayLike, channel: Channel) -> Channel:
        """``coefficient * x``, elementwise, of second-order coefficients."""
        return channel.scaled(coefficient)

    def product(self, a: Channel, b: Channel) -> Channel:
        """``a_i b_j``, elementwise."""
        met = a.met(b) if self.is_of_each_alone else None
        if met is not None:
            return self._of_own(met)
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
        if not isinstance(product, Bilinear):
            product = Bilinear(product)
        met = a.met_in(product, b) if self.is_of_each_alone else None
        if met is not None:
            return 2 * self._of_own(met)
        stacks = stacks_of(a, b)
        if not self.q or stacks is None:
            return ZERO
        a, b = stacks
        return self._bilinear(product, a, b, axis)

    def quadratic(
        self,
        function: Callable[..., list[Array]],
        xs: Sequence[Channel],
        out_axes: Sequence[int],
    ) -> list[Channel]:
        """``function(*[x_i for x in xs], *[x_j for x in xs])``, symmetric bilinear."""
        xs = alike(xs)
        if not self.q or all(x.is_zero for x in xs):
            return [ZERO] * len(out_axes)
        return self._quadratic(function, xs, out_axes)

    def _of_own(self, products: Channel) -> Channel:
        """The coefficients, made of a product for each direction with itself.

        For forms that are of each alone.
        """
        return products

    # Each form implements these. The channels are stored; those of a product share an
    # axis, and those of a quadratic form, some of which may be zero, ``present``.

    @abc.abstractmethod
    def _product(self, a: Stack, b: Stack) -> Channel: ...

    @abc.abstractmethod
    def _bilinear(
        self, product: Bilinear, a: Stack, b: Stack, axis: int
    ) -> Channel: ...

    @abc.abstractmethod
    def _quadratic(
        self,
        function: Callable[..., list[Array]],
        xs: Sequence[Zero | Stack],
        out_axes: Sequence[int],
    ) -> list[Channel]: ...
