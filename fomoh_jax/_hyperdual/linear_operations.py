"""Linear operations on the channels of several operands together."""

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

from jaxtyping import Array

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack, alike, first_stack
from fomoh_jax._hyperdual.descriptions import Alone, Joint
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


# The results of an operation on a channel, the only operand that varies; or None.
Way = Callable[..., Sequence[Channel] | None]
W = TypeVar("W", bound=Way)
_WAYS: dict[tuple[type[Channel], str], Way] = {}


def way(kind: type[Channel], *names: str) -> Callable[[W], W]:
    """Register how operations act on channels of a class, better than on stacks.

    The decorated function takes a channel and the operation as :class:`Alone`. It
    returns the results, or ``None`` if it knows no better way to them.

    Args:
      kind: the class.
      *names: of the primitives.
    """

    def register(function: W) -> W:
        _WAYS.update({(kind, name): function for name in names})
        return function

    return register


def through(joint: Joint, channels: Sequence[Channel]) -> list[Channel] | None:
    """The results of an operation by a way that is registered; None if there is none.

    Where several operands vary, the results are sums of what each of them makes.
    """
    varying = [x for x in zip(joint.places, channels) if not x[1].is_zero]
    kinds = {type(channel) for _, channel in varying}
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    known = _WAYS.get((kind, joint.name))
    if known is None or (len(varying) > 1 and not kind.is_closed_under_sums):
        return None
    terms = []
    for place, channel in varying:
        results = known(channel, Alone(joint, place))
        if results is None:
            return None
        terms.append(results)
    return [reduce(operator.add, of_one) for of_one in zip(*terms)]
