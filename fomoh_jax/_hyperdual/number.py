"""The hyper-dual number: a value, its tangents, and its second-order coefficients."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array

from fomoh_jax._hyperdual.channels import ZERO, Channel, Zero
from fomoh_jax._types import Leaf


@register_dataclass
@dataclasses.dataclass(frozen=True)
class HyperDual:
    r"""A value with its tangents and second-order coefficients along ``k`` directions.

    .. math:: x + \sum_i x_i\, \epsilon_i + \sum_{i < j} x_{ij}\, \epsilon_i \epsilon_j,
      \qquad \epsilon_i^2 = 0

    Attributes:
      primal: the value :math:`x`, shape ``s``.
      tangents: :math:`x_i`, ``k`` arrays of shape ``s``.
      seconds: :math:`x_{ij}`, also for ``i = j``, or what the form carries of them.

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 2.
    """

    primal: Leaf
    tangents: Channel = ZERO
    seconds: Channel = ZERO

    def __post_init__(self):
        # A zero is like the primal, also after a loop or a map has cut that.
        for name in ("tangents", "seconds"):
            if isinstance(getattr(self, name), Zero):
                object.__setattr__(self, name, Zero(self.primal))

    @property
    def channels(self) -> tuple[Channel, Channel]:
        return self.tangents, self.seconds

    @property
    def is_constant(self) -> bool:
        """Whether the number has no derivative, so that plain evaluation is enough."""
        return self.tangents.is_zero and self.seconds.is_zero

    def map_channels(self, function: Callable[[Channel], Channel]) -> "HyperDual":
        """The number with another channel for each of its two."""
        return HyperDual(self.primal, *map(function, self.channels))

    def moved(self, axis: int) -> "HyperDual":
        """The number with its stacking axes at ``axis``."""
        return self.map_channels(lambda channel: channel.moved(axis))

    def not_before(self, array: Array | None) -> "HyperDual":
        """The number, with nothing made before ``array`` is computed."""
        tangents = self.tangents.not_before(array)
        if tangents is self.tangents:
            return self
        return HyperDual(self.primal, tangents, self.seconds)

    def stored(self) -> "HyperDual":
        """The number with nothing left to be made."""
        return self.map_channels(lambda channel: channel.stored())


# For each of several numbers, the stacking axes of its tangents and of its seconds; or
# None, for what is zero.
Pattern = list[tuple[int | None, ...]]


def pattern_of(numbers: Sequence[HyperDual]) -> Pattern:
    """The stacking axes of the channels of several numbers."""
    axis = lambda channel: None if channel.is_zero else channel.axis
    return [tuple(map(axis, number.channels)) for number in numbers]


def spread(numbers: Sequence[HyperDual], shape: tuple[int, ...]) -> list[HyperDual]:
    """The operands of an elementwise operation, all that vary brought to its shape.

    Equations may broadcast: a scalar, or a dimension of size one. Beside a stacking
    axis a scalar would meet the wrong dimension, and a result must have its full shape.
    """

    def brought(number: HyperDual) -> HyperDual:
        if number.is_constant or jnp.shape(number.primal) == shape:
            return number
        primal = jnp.broadcast_to(number.primal, shape)
        return HyperDual(primal, *(c.broadcast(shape) for c in number.channels))

    return list(map(brought, numbers))


def is_inexact(x: Any) -> bool:
    """Whether an array, an abstract value or a variable can carry a derivative."""
    if not hasattr(x, "dtype"):
        x = x.aval if hasattr(x, "aval") else jax.typeof(x)
    return jnp.issubdtype(getattr(x, "dtype", bool), jnp.inexact)  # a token has none
