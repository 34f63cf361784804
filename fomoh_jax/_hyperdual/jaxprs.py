"""Evaluating jaxprs, and single equations of them, on other values.

The interpreter has a loop of its own, which frees numbers that are read no more.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import jax
from jax.core import Atom
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from fomoh_jax._compat import open_jaxpr
from fomoh_jax._hyperdual.number import is_inexact
from fomoh_jax._hyperdual.registry import operation_of
from fomoh_jax._types import Leaf, Program

T = TypeVar("T")


def eval_jaxpr(
    jaxpr: Program,
    args: Sequence[T],
    step: Callable[[JaxprEqn, list[T]], Sequence[T]],
    constant: Callable[[Leaf], T] = lambda x: x,
) -> list[T]:
    """Evaluate a jaxpr, open or closed, equation by equation.

    Args:
      jaxpr: what ``jax.make_jaxpr`` returns, or the jaxpr inside an equation.
      args: one value for each input.
      step: ``step(eqn, operands)``, the results of an equation.
      constant: makes a value of a constant or a literal.

    Returns:
      One value for each output.
    """
    program, consts = open_jaxpr(jaxpr)
    values = dict(zip(program.constvars, map(constant, consts), strict=True))
    values.update(zip(program.invars, args, strict=True))
    for eqn in program.eqns:
        outs = step(eqn, read(values, eqn.invars, constant))
        values.update(zip(eqn.outvars, outs, strict=True))
    return read(values, program.outvars, constant)


def read(
    values: Mapping[Var, T],
    atoms: Iterable[Atom],
    constant: Callable[[Leaf], T] = lambda x: x,
) -> list[T]:
    """The values of variables and literals."""
    return [constant(x.val) if isinstance(x, Literal) else values[x] for x in atoms]


def bind(eqn: JaxprEqn, operands: Sequence[Leaf]) -> list[Leaf]:
    """The results of an equation on other operands."""
    with eqn.ctx.manager:
        return operation_of(eqn)(*operands)


def derivative_of(eqn: JaxprEqn) -> ClosedJaxpr:
    """The derivative of an equation as a program, of its operands and tangents.

    Both the tangents that it takes and those that it returns are of what can carry a
    derivative alone.
    """
    places = [i for i, v in enumerate(eqn.invars) if is_inexact(v.aval)]

    def derivative(operands: Sequence[Leaf], tangents: Sequence[Leaf]) -> list[Leaf]:
        def of_inexact(*values: Leaf) -> list[Leaf]:
            given = dict(enumerate(operands)) | dict(zip(places, values))
            return list(filter(is_inexact, bind(eqn, list(given.values()))))

        return jax.jvp(of_inexact, [operands[i] for i in places], tangents)[1]

    avals = [v.aval for v in eqn.invars]
    return jax.make_jaxpr(derivative)(avals, [avals[i] for i in places])
