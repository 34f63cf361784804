"""The hyper-dual number: a value, its tangents, and its second-order coefficients.

A *channel* is either a :class:`Stack`, some arrays of one shape beside each other, or
:data:`ZERO`, which is known to be zero without being stored. A channel obeys three
operations that every rule is written with: :func:`scale`, :func:`add` and
:func:`apply_linear`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_dataclass, register_static


@register_static
@dataclasses.dataclass(frozen=True)
class Zero:
    """A channel known to be zero. It costs nothing and is never materialised."""

    def __repr__(self) -> str:
        return "ZERO"


ZERO = Zero()


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """Arrays of one shape ``s``, stacked along ``axis`` of ``array``.

    Where the axis sits is static, as the batch axis is in ``jax.vmap``: a product whose
    natural result is ``[batch, k, features]`` leaves it there, and the next product
    folds ``k`` into its batch without a transpose.

    Attributes:
      array: shape ``[*s[:axis], n, *s[axis:]]``.
      axis: position of the stacking axis.
    """

    array: jax.Array
    axis: int = dataclasses.field(default=0, metadata={"static": True})

    def moved(self, axis: int) -> "Stack":
        """The same stack with its axis at ``axis``."""
        if axis == self.axis:
            return self
        return Stack(jnp.moveaxis(self.array, self.axis, axis), axis)


Channel = Zero | Stack


@register_dataclass
@dataclasses.dataclass(frozen=True)
class HyperDual:
    """``primal + tangents · ε + seconds · ε²``, for all directions at once.

    Attributes:
      primal: the value, shape ``s``.
      tangents: first-order coefficients, ``k`` arrays of shape ``s``.
      seconds: second-order coefficients, as many as the form carries (Cobb et al. 2024,
        section 2: the coefficient of ε1ε2).
    """

    primal: Any
    tangents: Channel = ZERO
    seconds: Channel = ZERO

    @property
    def is_constant(self) -> bool:
        """Whether the number has no derivative, so that plain evaluation is enough."""
        return all(isinstance(channel, Zero) for channel in self.channels)

    @property
    def channels(self) -> tuple[Channel, Channel]:
        return self.tangents, self.seconds


# For each of several numbers, whether it has tangents and whether it has seconds.
Pattern = list[tuple[bool, ...]]


def pattern_of(numbers: Sequence[HyperDual]) -> Pattern:
    """Which channels the numbers have."""
    return [tuple(isinstance(c, Stack) for c in n.channels) for n in numbers]


def moved(number: HyperDual, axis: int) -> HyperDual:
    """The same number with its stacking axes at ``axis``."""

    def move(channel: Channel) -> Channel:
        return channel.moved(axis) if isinstance(channel, Stack) else ZERO

    return HyperDual(number.primal, *map(move, number.channels))


def is_inexact(x: Any) -> bool:
    """Whether an array or an abstract value can carry a derivative."""
    dtype = x.dtype if hasattr(x, "dtype") else jax.typeof(x).dtype
    return jnp.issubdtype(dtype, jnp.inexact)


def zeros_like_element(x: Any) -> jax.Array:
    """Zeros shaped like one element of a channel of ``x``."""
    return lax.full_like(x, 0)


def materialise(channel: Channel, like: Any, size: int, axis: int = 0) -> Stack:
    """The channel as a stack of ``size`` arrays shaped as ``like``, along ``axis``."""
    if isinstance(channel, Stack):
        return channel.moved(axis)
    # Made from the primal, the zeros have its sharding and its manual axes.
    zeros = lax.broadcast(zeros_like_element(like), (size,))
    return Stack(zeros).moved(axis)


def spread(numbers: Sequence[HyperDual], shape: tuple[int, ...]) -> list[HyperDual]:
    """The operands of an elementwise operation, all that vary brought to its shape.

    Equations may broadcast: a scalar, or a dimension of size one. Beside a stacking
    axis a scalar would meet the wrong dimension, and a result must have its full shape.
    """

    def spread_number(number: HyperDual) -> HyperDual:
        if number.is_constant or jnp.shape(number.primal) == shape:
            return number

        def spread_channel(channel: Channel) -> Channel:
            if isinstance(channel, Zero):
                return ZERO
            array, axis = channel.array, channel.axis
            if array.ndim == 1:  # scalars
                array = lax.expand_dims(array, range(1, len(shape) + 1))
            full = (*shape[:axis], array.shape[axis], *shape[axis:])
            return Stack(lax.broadcast_in_dim(array, full, range(len(full))), axis)

        primal = jnp.broadcast_to(number.primal, shape)
        return HyperDual(primal, *map(spread_channel, number.channels))

    return list(map(spread_number, numbers))


def add(*channels: Channel) -> Channel:
    """Sum of channels; zeros are skipped and the stacks brought to one axis."""
    stacks = [c for c in channels if isinstance(c, Stack)]
    if not stacks:
        return ZERO
    # The last position wins: it is where a matrix product has left its result, and what
    # is moved to it is the broadcast of a bias, whose transpose XLA folds away.
    axis = max(s.axis for s in stacks)
    total = stacks[0].moved(axis).array
    for stack in stacks[1:]:
        total = total + stack.moved(axis).array
    return Stack(total, axis)


def scale(coefficient: jax.typing.ArrayLike, channel: Channel) -> Channel:
    """``coefficient * x`` for every ``x`` in the channel, elementwise."""
    if isinstance(channel, Zero):
        return ZERO
    if jnp.ndim(coefficient):
        coefficient = jnp.expand_dims(coefficient, channel.axis)
    return Stack(jnp.multiply(coefficient, channel.array), channel.axis)


def apply_linear(
    fn: Callable[..., list[jax.Array]],
    channels: Sequence[Channel],
    zeros: Sequence[Any],
    out_axes: Sequence[int],
) -> list[Channel]:
    """Map a jointly linear function of several operands over their channels.

    Args:
      fn: takes one array per channel and returns a list of arrays, one per out axis.
      channels: the operands, all with the same number of stacked arrays.
      zeros: what ``fn`` gets in the place of a zero channel, if another is not zero.
      out_axes: where the stacking axis goes in each result.

    Returns:
      One channel for each result.
    """
    if all(isinstance(c, Zero) for c in channels):
        return [ZERO] * len(out_axes)
    operands = [c.array if isinstance(c, Stack) else z for c, z in zip(channels, zeros)]
    in_axes = [c.axis if isinstance(c, Stack) else None for c in channels]
    arrays = vectorise(fn, in_axes, list(out_axes))(*operands)
    return [Stack(array, axis) for array, axis in zip(arrays, out_axes)]


def vectorise(fn: Callable, in_axes: Any, out_axes: Any) -> Callable:
    """``jax.vmap``, or a loop where JAX has no batching rule for what is inside."""

    def vectorised(*operands):
        try:
            return jax.vmap(fn, in_axes, out_axes)(*operands)
        except NotImplementedError:
            return _one_by_one(fn, in_axes, out_axes, operands)

    return vectorised


def _one_by_one(fn: Callable, in_axes: Any, out_axes: Any, operands: Any) -> Any:
    stacked = [i for i, axis in enumerate(in_axes) if axis is not None]
    slices = [jnp.moveaxis(operands[i], in_axes[i], 0) for i in stacked]

    def step(slices):
        full = list(operands)
        for i, x in zip(stacked, slices):
            full[i] = x
        return fn(*full)

    results = lax.map(step, slices)
    if isinstance(out_axes, int):
        return jnp.moveaxis(results, 0, out_axes)
    return [jnp.moveaxis(x, 0, axis) for x, axis in zip(results, out_axes)]
