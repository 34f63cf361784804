"""Linear operations on the channels of several operands together."""

from collections.abc import Callable, Sequence

from jaxtyping import Array

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack, alike, first_stack
from fomoh_jax._hyperdual.descriptions import Joint
from fomoh_jax._hyperdual.vectorise import vectorise


def apply_linear(
    function: Callable[..., list[Array]],
    channels: Sequence[Channel],
    out_axes: Sequence[int],
) -> list[Channel]:
    """Map a jointly linear function of several operands over their channels.

    Args:
      function: takes one array for each channel, and returns a list of arrays, one for
        each of ``out_axes``.
      channels: the operands.
      out_axes: where the stacking axis goes in each result.

    Returns:
      One channel for each result.
    """
    operands = alike(channels)
    stack = first_stack(operands)
    if stack is None:
        return [ZERO] * len(out_axes)
    mapped = vectorise(function, [x.mapped_axis for x in operands], list(out_axes))
    arrays = mapped(*(x.operand() for x in operands))
    return [
        Stack(array, axis, stack.present, stack.size)
        for array, axis in zip(arrays, out_axes)
    ]


def through(joint: Joint, channels: Sequence[Channel]) -> list[Channel] | None:
    """The results of a linear operation that one of its operands knows a way through.

    None if none of them does.
    """
    ways = (channel.after(joint, channels) for channel in channels)
    return next((results for results in ways if results is not None), None)
