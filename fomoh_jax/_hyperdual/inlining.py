"""Programs whose indices are known: calls inlined, integers evaluated while tracing.

Under ``jax.jit`` even what depends on no argument is traced, and so are the indices of
a gather that NumPy knew. Where they are read by something that varies they are
evaluated here, and are constants again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal, primitives

from fomoh_jax._compat import called_jaxpr, open_jaxpr
from fomoh_jax._hyperdual.interpreter import at_source_of
from fomoh_jax._hyperdual.number import is_inexact
from fomoh_jax._hyperdual.registry import Operation, operation_of
from fomoh_jax._types import Leaf, Program

_CALLS = (primitives.jit_p, primitives.closed_call_p)


class _Value(NamedTuple):
    """A value of the program; if it is known while tracing, how to evaluate it."""

    traced: Leaf
    evaluate: Callable[[], Leaf] | None = None


def inlined(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The same program without calls, with the indices that are known as constants."""

    def program(*args: Leaf) -> list[Leaf]:
        return [value.traced for value in _run(jaxpr, list(map(_Value, args)))]

    return jax.make_jaxpr(program)(*jaxpr.in_avals)


def _run(jaxpr: Program, args: Sequence[_Value]) -> list[_Value]:
    program, consts = open_jaxpr(jaxpr)
    values = dict(zip(program.constvars, map(_constant, consts)))
    values.update(zip(program.invars, args))
    read = lambda atom: (
        _constant(atom.val) if isinstance(atom, Literal) else values[atom]
    )
    for eqn in program.eqns:
        operands = list(map(read, eqn.invars))
        if eqn.primitive in _CALLS:
            outs = _run(called_jaxpr(eqn.params), operands)
        else:
            with at_source_of(eqn):
                outs = _applied(operation_of(eqn), operands, bool(eqn.effects))
        values.update(zip(eqn.outvars, outs, strict=True))
    return list(map(read, program.outvars))


def _constant(value: Leaf) -> _Value:
    known = not isinstance(value, Tracer)
    return _Value(value, (lambda: value) if known else None)


def _applied(op: Operation, operands: list[_Value], effects: bool) -> list[_Value]:
    known = [value.evaluate for value in operands]
    if effects or not all(known):
        return list(map(_Value, op(*map(_as_operand, operands))))

    @functools.cache
    def evaluated() -> list[Leaf]:
        with jax.ensure_compile_time_eval():
            return op(*(evaluate() for evaluate in known if evaluate))

    traced = op(*(value.traced for value in operands))
    outs = range(len(traced))
    return [_Value(x, lambda i=i: evaluated()[i]) for i, x in zip(outs, traced)]


def _as_operand(value: _Value) -> Leaf:
    """What something that varies reads: an index or a predicate as a constant."""
    is_index = value.evaluate is not None and not is_inexact(value.traced)
    return value.evaluate() if is_index and value.evaluate else value.traced
