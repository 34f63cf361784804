"""Derivatives in which JAX itself differentiates a ``custom_vjp`` forwards.

``lax.custom_root`` differentiates its function where it is used, and so may the rule of
a ``custom_jvp``. Of a ``custom_vjp`` inside, JAX then leaves ``custom_lin``: a linear
operation of which only the transpose can be computed. That transpose is ordinary JAX,
and so is its own transpose, which is the operation. (Elsewhere a ``custom_vjp`` is seen
through. Here its backward rule says what its derivative is.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn, jaxpr_as_fun

from fomoh_jax._compat import (
    called_jaxpr,
    expansion_of_root_map,
    open_jaxpr,
    primitives_of,
)
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.jaxprs import eval_jaxpr
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.registry import Operation, operation_of, rule
from fomoh_jax._hyperdual.rules.generic import (
    Results,
    differentiable_part,
    forward,
    generic,
    pushed,
)
from fomoh_jax._types import Leaf, Program


def is_needed(op: Operation) -> bool:
    """Whether a ``custom_jvp_call`` may differentiate a ``custom_vjp``."""
    return "custom_vjp_call" in primitives_of(called_jaxpr(op.params))


@rule("call_hi_primitive")
def by_backward_rules(
    form: Form, op: Operation, args: Sequence[HyperDual]
) -> list[HyperDual]:
    """The generic rule, for which every ``custom_lin`` is transposed twice."""
    active, function = differentiable_part(op, args)
    primals = [arg.primal for arg in active]
    count = len(primals)
    values = lambda *xs: function(*xs)[0]
    both = lambda *xs: jax.jvp(values, xs[:count], xs[count:])[1]
    jaxpr = jax.make_jaxpr(both)(*primals, *primals)
    program = _Program()
    seen = jax.make_jaxpr(lambda *xs: program.run(jaxpr, xs))(*jaxpr.in_avals)
    if not program.has_changed:
        return generic(form, op, args)
    derivative = jaxpr_as_fun(seen)

    def second_derivative(*directions):
        u, v = directions[:count], directions[count:]
        return forward(lambda *xs: derivative(*xs, *u), primals, v, effects=False)[1]

    results = Results(*function(*primals))
    pushforward = lambda *u: derivative(*primals, *u)
    return pushed(form, op, active, results, pushforward, second_derivative)


class _Program:
    """A program in which every ``custom_lin`` is computed by its transpose.

    Attributes:
      has_changed: whether there was one.
    """

    def __init__(self):
        self.has_changed = False

    def run(self, jaxpr: Program, args: Sequence[Leaf]) -> list[Leaf]:
        """The results of a program on values that are traced."""
        return eval_jaxpr(jaxpr, args, self._applied)

    def _applied(self, eqn: JaxprEqn, operands: list[Leaf]) -> list[Leaf]:
        op = operation_of(eqn)
        if op.primitive.name == "custom_lin":
            self.has_changed = True
            return _transposed_twice(op, operands)
        if expand := expansion_of_root_map(op.params):
            return self.run(jax.make_jaxpr(expand)(*operands), operands)
        inside = lambda x: self._inside(x) if isinstance(x, Program) else x
        params = jax.tree.map(inside, op.params)
        return Operation(op.primitive, params, op.inputs, op.outputs)(*operands)

    def _inside(self, jaxpr: Program) -> Program:
        """The same for what an equation calls, or repeats."""
        names = primitives_of(jaxpr)
        if names.isdisjoint(("custom_lin", "call_hi_primitive")):
            return jaxpr
        program, _ = open_jaxpr(jaxpr)
        avals = [x.aval for x in program.invars]
        return jax.make_jaxpr(lambda *xs: self.run(jaxpr, xs))(*avals)


def _transposed_twice(op: Operation, operands: Sequence[Leaf]) -> list[Leaf]:
    kept = op.params["num_res"]
    residuals, tangents = operands[:kept], operands[kept:]
    linear = lambda *ts: op(*residuals, *ts)
    back: Callable[..., Any] = jax.linear_transpose(linear, *tangents)
    backwards = lambda *cotangents: back(list(cotangents))
    (*outs,) = jax.linear_transpose(backwards, *op.outputs)(tuple(tangents))
    return outs
