"""Channels that are put together where something needs them whole.

A layer of a wave function sees, beside an electron's own features, means over all
electrons, which are the same for each. Broadcast and joined to the others they would be
multiplied by the weights once for every electron; kept apart, they are multiplied once,
and what comes out is broadcast.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby

import jax
from jax import lax

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack, Zero
from fomoh_jax._hyperdual.descriptions import Linear
from fomoh_jax._hyperdual.linear_operations import apply_linear
from fomoh_jax._hyperdual.trees import register_tree

Shape = tuple[int, ...]


@register_tree
@dataclasses.dataclass(frozen=True, eq=False)
class Repeated(Channel):
    """Coefficients that are the same along some of their dimensions.

    Attributes:
      stack: of as many dimensions, with size 1 where they are the same.
      shape: of a coefficient.
    """

    is_stored = False

    stack: Stack
    shape: Shape = dataclasses.field(metadata={"static": True})

    @property
    def axis(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.stack.axis

    @property
    def sizes(self) -> Shape:
        """The shape of what is stored of a coefficient."""
        array, axis = self.stack.array, self.stack.axis
        return tuple(n for i, n in enumerate(array.shape) if i != axis)

    def stored(self) -> Stack:
        return self.stack.broadcast(self.shape)

    def mapped(self, function: Callable, axis: int) -> Channel:
        if not isinstance(function, Linear) or function.over is None:
            return super().mapped(function, axis)
        if self.sizes[function.over] != self.shape[function.over]:
            return super().mapped(function, axis)
        once = self.stack.mapped(function.function, axis)
        return repetition(once, function.shape)


@register_tree
@dataclasses.dataclass(frozen=True, eq=False)
class Joined(Channel):
    """Coefficients of several channels, one after the other along a dimension.

    Attributes:
      parts: the channels.
      shapes: of their coefficients.
      dimension: along which they follow each other.
    """

    is_stored = False

    parts: tuple[Channel, ...]
    shapes: tuple[Shape, ...] = dataclasses.field(metadata={"static": True})
    dimension: int = dataclasses.field(metadata={"static": True})

    @property
    def axis(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return max(part.axis for part in self.parts)

    def stored(self) -> Stack:
        present = next(part for part in self.parts if not part.is_zero)
        dtype = present.stacked().dtype
        parts = [
            Zero(jax.ShapeDtypeStruct(shape, dtype)) if part.is_zero else part
            for part, shape in zip(self.parts, self.shapes)
        ]
        return _concatenated(parts, self.dimension)

    def mapped(self, function: Callable, axis: int) -> Channel:
        if not isinstance(function, Linear) or function.of_slice is None:
            return super().mapped(function, axis)
        if function.over != self.dimension:
            return super().mapped(function, axis)
        sizes = [shape[self.dimension] for shape in self.shapes]
        starts = accumulate(sizes, initial=0)
        slices = map(function.of_slice, starts, sizes)
        total = sum((p.mapped(f, axis) for p, f in zip(self.parts, slices)), ZERO)
        # Added up once, and not in each of the loops that read it: XLA would read the
        # parts again in each, slowly (seen on a FermiNet-like network, 20 electrons).
        return lax.optimization_barrier(total)


def repeated(
    channel: Channel, inner: Shape, shape: Shape, dimensions: Sequence[int], axis: int
) -> Channel:
    """The channel of shape ``inner`` after a ``broadcast_in_dim`` that repeats it.

    The stacking axis goes to ``axis``.
    """
    sizes = dict(zip(dimensions, inner))
    once = [sizes.get(i, 1) for i in range(len(shape))]
    expand = lambda x: [lax.broadcast_in_dim(x, once, dimensions)]
    (stack,) = apply_linear(expand, [channel], [axis])
    return repetition(stack, shape)


def repetition(channel: Channel, shape: Shape) -> Channel:
    """The channel, of shape ``shape`` or of size 1 where that repeats it."""
    return channel if channel.is_zero else Repeated(channel.stacked(), shape)


def joined(
    channels: Sequence[Channel], shapes: Sequence[Shape], dimension: int
) -> Channel | None:
    """The channels in one, or None if none of them is repeated along another dimension.

    Neighbours of one kind become one part.
    """
    if not any(isinstance(channel, Repeated) for channel in channels):
        return None

    def kind(pair: tuple[Channel, Shape]) -> tuple:
        channel, shape = pair
        stored = channel.sizes if isinstance(channel, Repeated) else shape
        rows = [n for i, n in enumerate(stored) if i != dimension]
        whole = stored[dimension] == shape[dimension]
        return channel.is_zero, isinstance(channel, Repeated), whole, *rows

    parts, extents = [], []
    for (is_zero, is_repeated, whole, *_), pairs in groupby(
        zip(channels, shapes), kind
    ):
        group, inner = zip(*pairs)
        length = sum(shape[dimension] for shape in inner)
        shape = (*inner[0][:dimension], length, *inner[0][dimension + 1 :])
        if is_zero:
            part = ZERO
        elif is_repeated and whole:
            stacks = [x.stack for x in group if isinstance(x, Repeated)]
            part = Repeated(_concatenated(stacks, dimension), shape)
        else:  # one alone may be local
            first, *others = group
            part = _concatenated(group, dimension) if others else first
        parts.append(part)
        extents.append(shape)
    return Joined(tuple(parts), tuple(extents), dimension)


def _concatenated(channels: Sequence[Channel], dimension: int) -> Stack:
    """Channels one after the other; those that are zero must have a type."""
    axis = max(channel.axis for channel in channels)
    function = lambda *xs: [lax.concatenate(xs, dimension)]
    (stack,) = apply_linear(function, channels, [axis])
    return stack.stacked()
