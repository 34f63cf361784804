"""Custom JVP rules: the user's word, honoured to second order.

The call is differentiated, never the function inside it. Most of these rules (relu,
softplus, a guarded square root) are elementwise, and then the elementwise family is far
cheaper than the generic rule: one product with ``φ'`` per channel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from fomoh_jax.compat import open_jaxpr
from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.number import HyperDual
from fomoh_jax.hyperdual.registry import Operation, names_with_rule, rule
from fomoh_jax.hyperdual.rules.elementwise import elementwise, partial_derivative
from fomoh_jax.hyperdual.rules.generic import differentiable_part, generic


@rule("custom_jvp_call")
def _custom_jvp(form: Form, op: Operation, args: Sequence[HyperDual]):
    active, function = differentiable_part(op, args)
    # The mixed derivatives of a rule with several operands need not be symmetric, since
    # a rule may be the derivative of nothing. The elementwise family takes them to be.
    if len(active) == 1 and len(op.outputs) == 1:
        x = active[0].primal
        if jnp.shape(x) == op.outputs[0].shape:
            derivative = _second_derivative(function, x)
            if _is_elementwise(derivative, jnp.shape(x)):
                return elementwise(form, op, args, curved=not _is_zero(derivative))
    return generic(form, op, args)


def _second_derivative(function: Callable, x: Any) -> Any:
    """The jaxpr of ``φ''`` of what may be an elementwise function."""
    phi = lambda x: function(x)[0][0]
    return jax.make_jaxpr(partial_derivative(partial_derivative(phi, 0), 0))(x)


def _is_elementwise(jaxpr: Any, shape: tuple[int, ...]) -> bool:
    """Whether each element of the results depends on that element of the inputs alone.

    Sufficient and not necessary: every equation is elementwise and works on arrays of
    that shape, or on scalars.
    """
    jaxpr, _ = open_jaxpr(jaxpr)
    for eqn in jaxpr.eqns:
        if any(a.aval.shape not in (shape, ()) for a in (*eqn.invars, *eqn.outvars)):
            return False
        name = eqn.primitive.name
        if name in _CALLS:
            if not _is_elementwise(eqn.params[_CALLS[name]], shape):
                return False
        elif name not in _elementwise_names():
            return False
    return True


def _is_zero(jaxpr: Any) -> bool:
    """Whether the result of a jaxpr is a zero that was written down as one."""
    jaxpr, _ = open_jaxpr(jaxpr)
    fills = {
        eqn.outvars[0]: eqn.invars[0]
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "broadcast_in_dim"
    }
    outs = [v if isinstance(v, Literal) else fills.get(v) for v in jaxpr.outvars]
    return all(isinstance(v, Literal) and v.val == 0 for v in outs)


# What is looked into, and under which parameter. A scan is not: shapes alone do not
# tell a cumulative sum over scalars from a map.
_CALLS = {
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}

_NO_DERIVATIVE = {
    *("and", "ceil", "eq", "floor", "ge", "gt", "is_finite", "le", "lt", "ne", "not"),
    *("or", "round", "sign", "stop_gradient", "xor"),
}
_OTHER_RULES = {
    *("add", "add_any", "broadcast_in_dim", "convert_element_type", "copy", "mul"),
    *("div", "neg", "select_n", "sub", "abs", "max", "min"),
}


def _elementwise_names() -> set[str]:
    return _NO_DERIVATIVE | _OTHER_RULES | set(names_with_rule(elementwise))
