"""Programs whose indices are known: calls inlined, integers evaluated while tracing.

Under ``jax.jit`` even what depends on no argument is traced, and so are the indices of
a gather that NumPy knew. Where they are read by something that varies they are
evaluated here, and are constants again.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, primitives

from fomoh_jax._compat import called_jaxpr
from fomoh_jax._hyperdual.interpreter import at_source_of
from fomoh_jax._hyperdual.jaxprs import eval_jaxpr
from fomoh_jax._hyperdual.number import is_inexact
from fomoh_jax._hyperdual.registry import Operation, operation_of
from fomoh_jax._types import Leaf, Program

_CALLS = (primitives.jit_p, primitives.closed_call_p)


# The results so far of an evaluation, by the ``id`` of the operation applied.
Memo = dict[int, list[Leaf]]

# A program of more operations than these is compiled as one; each by itself is compiled
# once for all programs, but there may be hundreds.
_FEW = 16


class _Value(NamedTuple):
    """A value of the program; if it is known while tracing, how to compute it.

    Attributes:
      traced: the value.
      compute: of a memo.
      operations: how many these are, at most.
    """

    traced: Leaf
    compute: Callable[[Memo], Leaf] | None = None
    operations: int = 0

    def evaluated(self) -> Leaf:
        """The value as an array, not traced; it must be known."""
        compute = self.compute
        assert compute is not None
        with jax.ensure_compile_time_eval():
            if self.operations <= _FEW:
                return compute({})
            return jax.jit(lambda: compute({}))()


def inlined(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The same program without calls, with the indices that are known as constants."""

    def program(*args: Leaf) -> list[Leaf]:
        return [value.traced for value in _run(jaxpr, list(map(_Value, args)))]

    return jax.make_jaxpr(program)(*jaxpr.in_avals)


def _run(jaxpr: Program, args: Sequence[_Value]) -> list[_Value]:
    return eval_jaxpr(jaxpr, args, _step, _constant)


def _step(eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
    if eqn.primitive in _CALLS:
        return _run(called_jaxpr(eqn.params), operands)
    with at_source_of(eqn):
        return _applied(operation_of(eqn), operands, bool(eqn.effects))


def _constant(value: Leaf) -> _Value:
    known = not isinstance(value, Tracer)
    return _Value(value, (lambda memo: value) if known else None)


def _applied(op: Operation, operands: list[_Value], effects: bool) -> list[_Value]:
    known = [value.compute for value in operands]
    if effects or not all(known):
        return list(map(_Value, op(*map(_as_operand, operands))))

    def results(memo: Memo) -> list[Leaf]:
        if id(op) not in memo:
            memo[id(op)] = op(*(compute(memo) for compute in known if compute))
        return memo[id(op)]

    traced = op(*(value.traced for value in operands))
    count = 1 + sum(value.operations for value in operands)
    return [
        _Value(x, lambda memo, i=i: results(memo)[i], count)
        for i, x in enumerate(traced)
    ]


def _as_operand(value: _Value) -> Leaf:
    """The operand of a varying operation; a known index or predicate as a constant."""
    is_index = value.compute is not None and not is_inexact(value.traced)
    return value.evaluated() if is_index else value.traced
