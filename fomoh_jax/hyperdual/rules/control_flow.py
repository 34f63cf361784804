"""Control flow: restage the loop or the branch with the extra channels beside it.

Which channels a carry has is static. It starts with those of the initial value and
grows until one more turn of the body adds none: a fixed point, reached after at most
two turns per carried value, and usually after one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from fomoh_jax.compat import scan_layout
from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.interpreter import interpret
from fomoh_jax.hyperdual.number import ZERO, Channel, HyperDual, Stack, materialise
from fomoh_jax.hyperdual.registry import Operation, rule

# For each number, whether it has tangents and whether it has seconds.
Pattern = list[tuple[bool, ...]]


def _pattern(numbers: Sequence[HyperDual]) -> Pattern:
    return [tuple(isinstance(c, Stack) for c in n.channels) for n in numbers]


def _union(*patterns: Pattern) -> Pattern:
    return [tuple(any(flags) for flags in zip(*numbers)) for numbers in zip(*patterns)]


def _widen(
    form: Form, numbers: Sequence[HyperDual], pattern: Pattern
) -> list[HyperDual]:
    """The same numbers with at least the channels of the pattern, on leading axes."""

    def widened(number: HyperDual, flags: tuple[bool, ...]) -> HyperDual:
        channels = [
            materialise(channel, number.primal, size) if wanted else channel
            for channel, size, wanted in zip(number.channels, (form.k, form.q), flags)
        ]
        return HyperDual(number.primal, *channels)

    return list(map(widened, numbers, pattern))


def _fixed_point(
    body: Callable[[list[HyperDual]], list[HyperDual]],
    form: Form,
    init: list[HyperDual],
) -> Pattern:
    """The channels that a carry ends up with, if ``body`` maps it to its successor."""
    pattern = _pattern(init)
    while True:
        after = jax.eval_shape(lambda: body(_widen(form, init, pattern)))
        if (union := _union(pattern, _pattern(after))) == pattern:
            return pattern
        pattern = union


def _relabelled(number: HyperDual, axis: int) -> HyperDual:
    """The number with its stacks declared, not moved, to be along ``axis``."""

    def relabel(channel: Channel) -> Channel:
        return Stack(channel.array, axis) if isinstance(channel, Stack) else ZERO

    return HyperDual(number.primal, *map(relabel, number.channels))


def _moved(number: HyperDual, axis: int) -> HyperDual:
    def move(channel: Channel) -> Channel:
        return channel.moved(axis) if isinstance(channel, Stack) else ZERO

    return HyperDual(number.primal, *map(move, number.channels))


@rule("scan")
def _scan(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    layout = scan_layout(op.params, len(args), len(op.outputs))
    init = [args[i] for i in layout.carry]
    # Scanned arrays lead with time: the directions come second, and first in a slice.
    xs = [_moved(args[i], 1) for i in layout.xs]

    def turn(carry, slices):
        numbers = list(args)
        for i, number in zip(layout.carry, carry):
            numbers[i] = number
        for i, number in zip(layout.xs, slices):
            numbers[i] = _relabelled(number, 0)
        outs = interpret(op.params["jaxpr"], form, numbers)
        ys = [_moved(outs[i], 0) for i in layout.ys]
        return [outs[i] for i in layout.carry_out], ys

    first = jax.tree.map(lambda x: lax.full(x.shape[1:], 0, x.dtype), xs)
    pattern = _fixed_point(lambda carry: turn(carry, first)[0], form, init)

    def body(carry, slices):
        carry, ys = turn(carry, slices)
        return _widen(form, carry, pattern), ys

    carry, ys = lax.scan(
        body,
        _widen(form, init, pattern),
        xs,
        length=op.params["length"],
        reverse=op.params["reverse"],
        unroll=op.params["unroll"],
    )
    outs: dict[int, Any] = dict(zip(layout.carry_out, carry))
    outs.update(zip(layout.ys, (_relabelled(y, 1) for y in ys)))
    return [outs[i] for i in range(len(outs))]


@rule("while")
def _while(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    num_cond, num_body = op.params["cond_nconsts"], op.params["body_nconsts"]
    cond_consts = [HyperDual(arg.primal) for arg in args[:num_cond]]
    body_consts = list(args[num_cond : num_cond + num_body])
    init = list(args[num_cond + num_body :])

    def turn(carry):
        return interpret(op.params["body_jaxpr"], form, [*body_consts, *carry])

    def condition(carry):
        numbers = [*cond_consts, *(HyperDual(n.primal) for n in carry)]
        return interpret(op.params["cond_jaxpr"], form, numbers)[0].primal

    pattern = _fixed_point(turn, form, init)
    return lax.while_loop(
        condition,
        lambda carry: _widen(form, turn(carry), pattern),
        _widen(form, init, pattern),
    )


@rule("cond")
def _cond(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    index, *operands = args

    def branch(jaxpr):
        return lambda operands: interpret(jaxpr, form, operands)

    branches = [branch(jaxpr) for jaxpr in op.params["branches"]]
    pattern = _union(*(_pattern(jax.eval_shape(b, operands)) for b in branches))
    return lax.switch(
        index.primal,
        [lambda operands, b=b: _widen(form, b(operands), pattern) for b in branches],
        operands,
    )
