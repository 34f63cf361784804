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
import numpy as np
from jax import lax
from jax.ref import AbstractRef
from jax.tree_util import register_dataclass, register_static

from fomoh_jax.hyperdual.regenerated import Regenerated


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

    So is which coefficients are there. A direction that moves one layer alone is zero
    on the others, and what is known to be zero is neither stored nor computed.

    Attributes:
      array: shape ``[*s[:axis], n, *s[axis:]]``.
      axis: position of the stacking axis.
      present: which coefficients the ``n`` arrays are, in ascending order; all the
        others are zero. ``None`` if all are there.
    """

    array: jax.Array
    axis: int = dataclasses.field(default=0, metadata={"static": True})
    present: tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    @property
    def indices(self) -> tuple[int, ...]:
        """Which coefficient each of the arrays is."""
        if self.present is not None:
            return self.present
        return tuple(range(self.array.shape[self.axis]))

    def moved(self, axis: int) -> "Stack":
        """The same stack with its axis at ``axis``."""
        if axis == self.axis:
            return self
        return Stack(jnp.moveaxis(self.array, self.axis, axis), axis, self.present)

    def padded(self, present: tuple[int, ...] | None, size: int) -> "Stack":
        """The same stack with zeros stored for more of its ``size`` coefficients."""
        if present == self.present:
            return self
        target = range(size) if present is None else present
        places = {index: place for place, index in enumerate(self.indices)}
        source = np.array([places.get(index, len(places)) for index in target])
        held = np.flatnonzero(source < len(places))
        if len(held) == len(source):
            array = self.array
        elif len(held) == held[-1] - held[0] + 1:  # side by side
            config = [(0, 0, 0)] * self.array.ndim
            config[self.axis] = (int(held[0]), int(len(source) - held[-1] - 1), 0)
            array = lax.pad(self.array, jnp.zeros((), self.array.dtype), config)
        else:
            at = self.array.at[(slice(None),) * self.axis + (source,)]
            array = at.get(mode="fill", fill_value=0)
        return Stack(array, self.axis, present)


Channel = Zero | Stack


@register_dataclass
@dataclasses.dataclass(frozen=True)
class HyperDual:
    """``primal + tangents · ε + seconds · ε²``, for all directions at once.

    Attributes:
      primal: the value, shape ``s``.
      tangents: first-order coefficients, ``k`` arrays of shape ``s``. (Until an
        equation takes the number, it may hold a :class:`Regenerated` in their place.)
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


def settled(
    numbers: Sequence[HyperDual], latest: jax.Array | None = None
) -> list[HyperDual]:
    """The numbers, with tangents that are regenerated made now.

    That is, once the last of what the equation that takes them needs is known, or else
    ``latest``.
    """
    if not any(isinstance(n.tangents, Regenerated) for n in numbers):
        return list(numbers)
    after = known_last(numbers)
    if after is None:
        after = latest

    def settle(number: HyperDual) -> HyperDual:
        if not isinstance(number.tangents, Regenerated):
            return number
        stack = Stack(number.tangents.dense(after))
        return HyperDual(number.primal, stack, number.seconds)

    return list(map(settle, numbers))


def known_last(numbers: Sequence[HyperDual]) -> jax.Array | None:
    """A channel that is known after the rest: seconds, if there are any.

    All primals of a network could be computed before any of its tangents are.
    """
    channels = [n.seconds for n in numbers] + [n.tangents for n in numbers]
    arrays = [channel.array for channel in channels if isinstance(channel, Stack)]
    is_ref = lambda x: isinstance(jax.typeof(x), AbstractRef)
    return next((x for x in arrays if not is_ref(x)), None)


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


def in_dtype(x: jax.Array, dtype: Any) -> jax.Array:
    """``x`` in a dtype. (``astype`` its own would make a weak type strong.)"""
    return x if x.dtype == dtype else x.astype(dtype)


def zeros_like_element(x: Any) -> jax.Array:
    """Zeros shaped like one element of a channel of ``x``."""
    return lax.full_like(x, 0)


def materialise(channel: Channel, like: Any, size: int, axis: int = 0) -> Stack:
    """The channel as a stack of ``size`` arrays shaped as ``like``, along ``axis``."""
    if isinstance(channel, Stack):
        return channel.padded(None, size).moved(axis)
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
            array = lax.broadcast_in_dim(array, full, range(len(full)))
            return Stack(array, axis, channel.present)

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
    stacks = alike([s.moved(axis) for s in stacks])
    total = stacks[0].array
    for stack in stacks[1:]:
        total = total + stack.array
    return Stack(total, axis, stacks[0].present)


def alike(stacks: Sequence[Stack]) -> list[Stack]:
    """The stacks with zeros stored wherever one of them has a coefficient."""
    if len({stack.present for stack in stacks}) < 2:
        return list(stacks)
    union = sorted(set().union(*(stack.indices for stack in stacks)))
    complete = any(stack.present is None for stack in stacks)
    present = None if complete else tuple(union)
    return [stack.padded(present, len(union)) for stack in stacks]


def scale(coefficient: jax.typing.ArrayLike, channel: Channel) -> Channel:
    """``coefficient * x`` for every ``x`` in the channel, elementwise."""
    if isinstance(channel, Zero):
        return ZERO
    if jnp.ndim(coefficient):
        coefficient = jnp.expand_dims(coefficient, channel.axis)
    array = jnp.multiply(coefficient, channel.array)
    return Stack(array, channel.axis, channel.present)


def apply_linear(
    fn: Callable[..., list[jax.Array]],
    channels: Sequence[Channel],
    zeros: Sequence[Any],
    out_axes: Sequence[int],
) -> list[Channel]:
    """Map a jointly linear function of several operands over their channels.

    Args:
      fn: takes one array per channel and returns a list of arrays, one per out axis.
      channels: the operands.
      zeros: what ``fn`` gets in the place of a zero channel, if another is not zero.
      out_axes: where the stacking axis goes in each result.

    Returns:
      One channel for each result.
    """
    stacks = alike([c for c in channels if isinstance(c, Stack)])
    if not stacks:
        return [ZERO] * len(out_axes)
    present, stacked = stacks[0].present, iter(stacks)
    channels = [next(stacked) if isinstance(c, Stack) else ZERO for c in channels]
    operands = [c.array if isinstance(c, Stack) else z for c, z in zip(channels, zeros)]
    in_axes = [c.axis if isinstance(c, Stack) else None for c in channels]
    arrays = vectorise(fn, in_axes, list(out_axes))(*operands)
    return [Stack(array, axis, present) for array, axis in zip(arrays, out_axes)]


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
