"""Primitives with no derivative: the primal alone.

Operations on integers, booleans and keys need no rule: their operands never vary, and
the interpreter evaluates them as they are.
"""

from collections.abc import Sequence

from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.number import HyperDual
from fomoh_jax.hyperdual.registry import Operation, rule


@rule(
    *("argmax", "argmin", "ceil", "debug_callback", "debug_print", "eq", "eq_to"),
    *("floor", "ge", "gt", "is_finite", "le", "le_to", "lt", "lt_to", "ne", "round"),
    *("sign", "stop_gradient"),
)
def constant(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    """``y_t = y_s = 0``."""
    return [HyperDual(out) for out in op(*(arg.primal for arg in args))]
