"""Mutable arrays (``jax.new_ref``): one more for the tangents, one for the seconds.

Which channels a mutable array will have is not known when it is made, so it has all of
them from the start.
"""

from collections.abc import Sequence

import jax
from jax import lax

from fomoh_jax._hyperdual.channels import ZERO
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.linear_operations import apply_linear
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.registry import Operation, rule


def _dense(form: Form, number: HyperDual) -> HyperDual:
    """The number with every channel that the form carries."""
    if not is_inexact(number.primal):
        return number
    seconds = number.seconds.whole(form.q) if form.q else ZERO
    return HyperDual(number.primal, number.tangents.whole(form.k), seconds)


@rule("new_ref")
def _new(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    return [jax.tree.map(lambda array: op(array)[0], _dense(form, args[0]))]


@rule("empty_ref")
def _empty(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    (ref,) = op.outputs
    start = _dense(form, HyperDual(lax.empty(ref.shape, ref.dtype)))
    return [jax.tree.map(jax.new_ref, start)]


@rule("freeze", "free_ref")
def _each(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    (number,) = args
    outs = [op(leaf) for leaf in jax.tree.leaves(number)]
    if not op.outputs:
        return []
    return [jax.tree.structure(number).unflatten([out for (out,) in outs])]


@rule("get", "swap", "addupdate")
def _access(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    ref, *rest = args
    if ref.is_constant:
        raise ValueError(
            "a value that varies cannot be written into a mutable array that was made "
            "outside of the differentiated function, because its derivatives would be "
            "lost. Make the array inside, with jax.new_ref, and return its value."
        )
    outs = op(*(arg.primal for arg in args))
    value = 0 if op.primitive.name == "get" else 1
    fixed = [arg.primal for arg in rest[value:]]  # the indices
    written = [_dense(form, number) for number in rest[:value]]

    def mapped(channel: str) -> list:
        stacks = [getattr(number, channel) for number in (ref, *written)]
        function = lambda *leaves: op(*leaves, *fixed)
        return apply_linear(function, stacks, [0] * len(outs))

    return [
        HyperDual(out, *channels)
        for out, *channels in zip(outs, mapped("tangents"), mapped("seconds"))
    ]
