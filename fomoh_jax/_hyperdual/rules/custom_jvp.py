"""Custom JVP rules: the user's word, honoured to second order.

The call is differentiated, never the function inside it, and by the rule's tangent
alone: ``y_i`` is what the rule says along ``v_i``, for every direction. (Nested
``jax.jvp`` takes one of its two slopes from the primal that the rule returns, and so
forgets the word of a straight-through estimator whose rule returns ``jnp.round(x)`` and
not a call of itself.) Most of these rules (relu, softplus, a guarded square root) are
elementwise, and then the elementwise family is far cheaper than the generic rule: one
product with ``φ'`` per channel.
"""

from collections.abc import Sequence

import jax
from jax.extend.core import Literal

from fomoh_jax._compat import called_jaxpr, is_slogdet, open_jaxpr
from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.registry import Operation, names_with_rule, operation_of, rule
from fomoh_jax._hyperdual.rules import custom_lin
from fomoh_jax._hyperdual.rules.determinant import slogdet
from fomoh_jax._hyperdual.rules.elementwise import elementwise, partial_derivative
from fomoh_jax._hyperdual.rules.generic import forward, generic
from fomoh_jax._types import Program


@rule("custom_jvp_call")
def _custom_jvp(
    form: Form, op: Operation, args: Sequence[HyperDual]
) -> Sequence[HyperDual]:
    if is_slogdet(op.params):
        return slogdet(form, op, args)
    if custom_lin.is_needed(op):
        return _asked_anew(op, args, custom_lin.by_backward_rules(form, op, args))
    active = [i for i, arg in enumerate(args) if not arg.is_constant]
    # A rule that changes the dtype rounds its tangents on the way.
    kinds = {(x.shape, x.dtype) for x in (*(op.inputs[i] for i in active), *op.outputs)}
    if len(kinds) == 1 and is_inexact(op.outputs[0]):
        jaxpr = _derivatives(op, active, form.q > 0)
        if _is_elementwise(jaxpr, op.outputs[0].shape):
            return _chain_rule(form, op, jaxpr, args, active)
    return _asked_anew(op, args, generic(form, op, args))


def _asked_anew(
    op: Operation, args: Sequence[HyperDual], outs: Sequence[HyperDual]
) -> list[HyperDual]:
    """The results with the values of a call, and not with those of its rule.

    Whoever differentiates them again then asks the rule anew.
    """
    if open_jaxpr(called_jaxpr(op.params))[0].effects:
        return list(outs)
    values = op(*(arg.primal for arg in args))
    return [HyperDual(value, *out.channels) for value, out in zip(values, outs)]


def _derivatives(op: Operation, active: Sequence[int], twice: bool) -> Program:
    """The jaxpr of what may be an elementwise function with its partial derivatives.

    Its results are ``φ``, the derivatives ``φ_a`` that the user's rule gives, and the
    derivatives ``φ_ab`` of ``φ_a`` by ``x_b``. These need not be symmetric: a rule may
    be the derivative of nothing.
    """

    def derivatives(*xs):
        slopes = [partial_derivative(op, a) for a in active]
        if not twice:
            pairs = [slope(*xs) for slope in slopes]
            return pairs[0][0], [first for _, first in pairs]
        table = [
            [partial_derivative(slope, b, forward)(*xs) for b in active]
            for slope in slopes
        ]
        (values, _), _ = table[0][0]
        firsts = [row[0][0][1] for row in table]
        return values, firsts, [second for row in table for _, (_, second) in row]

    return jax.make_jaxpr(derivatives)(*op.inputs)


def _chain_rule(
    form: Form,
    op: Operation,
    jaxpr: Program,
    args: Sequence[HyperDual],
    places: Sequence[int],
) -> list[HyperDual]:
    """The elementwise chain rule, with the derivatives that the jaxpr computes."""
    primals, active = [x.primal for x in args], [args[i] for i in places]
    constants = list(map(HyperDual, primals))
    results = [out.primal for out in interpret(jaxpr, form, constants)]
    outputs = len(op.outputs)
    rows = lambda flat: [flat[i : i + outputs] for i in range(0, len(flat), outputs)]
    n, zeros = len(active), rows(_zeros(jaxpr))
    values, *derivatives = rows(results)

    def curved_terms(a: int, out: int) -> Channel:
        """``Σ_b φ_ab x_a x_b``, in one product."""
        place = n + a * n
        second_derivatives = {
            b: derivatives[place + b][out]
            for b in range(n)
            if not zeros[1 + place + b][out]
        }
        along = active[a].tangents
        if list(second_derivatives) == [a]:
            return form.scale_seconds(second_derivatives[a], form.product(along, along))
        others = [
            second * active[b].tangents for b, second in second_derivatives.items()
        ]
        return form.product(along, sum(others, ZERO))

    def number(out: int) -> HyperDual:
        tangents, seconds = [], []
        for a, x in enumerate(active):
            tangents.append(derivatives[a][out] * x.tangents)
            seconds.append(form.scale_seconds(derivatives[a][out], x.seconds))
            if form.q:
                seconds.append(curved_terms(a, out))
        return HyperDual(values[out], sum(tangents, ZERO), sum(seconds, ZERO))

    return _asked_anew(op, args, list(map(number, range(outputs))))


def _is_elementwise(jaxpr: Program, shape: tuple[int, ...]) -> bool:
    """Whether each element of the results depends on that element of the inputs alone.

    Sufficient and not necessary: every equation is elementwise and works on arrays of
    that shape, on scalars, or on the one tangent of :func:`forward`.
    """
    shapes = (shape, (), (1, *shape))
    names = _elementwise_names()
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        if not eqn.outvars:  # a callback: it looks on
            continue
        op = operation_of(eqn)
        if any(aval.shape not in shapes for aval in (*op.inputs, *op.outputs)):
            return False
        name = eqn.primitive.name
        if name in _CALLS:
            if not _is_elementwise(eqn.params[_CALLS[name]], shape):
                return False
        elif name not in names:
            return False
    return True


def _zeros(jaxpr: Program) -> list[bool]:
    """Whether each result of a jaxpr is a zero that was written down as one."""
    program, _ = open_jaxpr(jaxpr)
    fills = {
        eqn.outvars[0]: eqn.invars[0]
        for eqn in program.eqns
        if eqn.primitive.name == "broadcast_in_dim"
    }
    outs = [v if isinstance(v, Literal) else fills.get(v) for v in program.outvars]
    return [isinstance(v, Literal) and bool(v.val == 0) for v in outs]


# Calls that are looked into, and the parameter that holds their program. A scan is not
# one: shapes alone do not tell a cumulative sum over scalars from a map.
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
    *("div", "neg", "select_n", "squeeze", "sub", "abs", "max", "min"),
    *("bitcast_convert_type", "optimization_barrier", "polynomial", "pvary"),
}


def _elementwise_names() -> set[str]:
    return _NO_DERIVATIVE | _OTHER_RULES | set(names_with_rule(elementwise))
