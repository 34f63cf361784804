"""Primitives with no derivative: the primal alone.

Operations on integers, booleans and keys need no rule: their operands never vary, and
the interpreter evaluates them as they are.
"""

from collections.abc import Sequence

from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.registry import Operation, rule
from fomoh_jax._hyperdual.rules.generic import generic


@rule(
    *("argmax", "argmin", "bitcast_convert_type", "ceil", "debug_callback"),
    *("debug_print", "eq", "eq_to", "floor", "ge", "gt", "inspect_sharding"),
    *("is_finite", "le", "le_to", "lt", "lt_to", "ne", "round", "sign"),
    "stop_gradient",
)
def constant(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    r"""The rule of primitives without a derivative: the primal alone.

    .. math:: y_i = 0, \qquad y_{ij} = 0

    Args:
      form: which second-order coefficients are wanted.
      op: the operation.
      args: its operands.

    Returns:
      One :class:`HyperDual` for each result.

    Example:
      >>> from jax.extend.core import Primitive
      >>> from fomoh_jax import hyperdual, register_rule
      >>> my_p = Primitive("my_constant")
      >>> rule = register_rule(my_p)(hyperdual.constant)
    """
    return [HyperDual(out) for out in op(*(arg.primal for arg in args))]


@rule("io_callback")
def _io_callback(form: Form, op: Operation, args: Sequence[HyperDual]):
    # It may look at a value that varies. What it returns has no derivative that anybody
    # knows, and the error of JAX says so.
    returns_numbers = any(map(is_inexact, op.outputs))
    return (generic if returns_numbers else constant)(form, op, args)
