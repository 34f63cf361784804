"""Loops as programs over all their steps, where what they read is local.

A step of a loop has no table of its own: which variables it sees changes with time. If
no step waits for another, all of them are one program over arrays of all the steps, and
the tables are those of its operations.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Atom, Tracer
from jax.extend.core import Jaxpr, Literal, Var, jaxpr_as_fun
from jaxtyping import Array

from fomoh_jax._compat import ScanLayout, open_jaxpr, programs_in
from fomoh_jax._hyperdual.registry import Operation, is_known
from fomoh_jax._types import Aval, Leaf, Program

# The steps are so many programs, one after the other: at once they would keep more than
# a loop that carries stored directions.
_PARTS = 4


def all_steps(
    op: Operation, layout: ScanLayout, primals: Sequence[Leaf]
) -> Callable[..., list[Array]] | None:
    """A scan as a program over all its steps, or None if one waits for another.

    No step waits where each part of the carry stays what it is, counts the steps, or
    only has something added to it that does not depend on the carry.
    """
    jaxpr, length = op.params["jaxpr"], op.params["length"]
    if not length or not _is_plain(jaxpr):
        return None
    carry = _carry_of(op, layout, primals)
    if carry is None:
        return None

    def at_once(*args: Array) -> list[Array]:
        def step(xs: Sequence[Array]) -> list[Array]:
            operands = list(args)
            for i in set(layout.carry) - carry.same:
                operands[i] = lax.full_like(args[i], 0)
            for i, x in zip((*carry.counts, *layout.xs), xs):
                operands[i] = x
            return jaxpr_as_fun(jaxpr)(*operands)

        slices = [args[i] for i in layout.xs]
        outs = _in_parts(step, list(carry.counts.values()), slices, length)
        for i, out in zip(layout.carry, layout.carry_out):
            if i in carry.same:
                outs[out] = args[i]
            elif i in carry.counts:
                outs[out] = outs[out][carry.last]
            else:
                outs[out] = args[i] + outs[out].sum(0, dtype=args[i].dtype)
        return outs

    return at_once


class _Carry(NamedTuple):
    """The carry of a loop in which no step waits for another.

    Attributes:
      same: the operands that stay what they are.
      counts: those that count the steps, with their values at each.
      last: the slice that the last step reads.
    """

    same: set[int]
    counts: dict[int, np.ndarray]
    last: int


def _carry_of(
    op: Operation, layout: ScanLayout, primals: Sequence[Leaf]
) -> _Carry | None:
    """The :class:`_Carry` of a scan, or None if a step waits for another."""
    program, _ = open_jaxpr(op.params["jaxpr"])
    times = np.arange(op.params["length"])[:: -1 if op.params["reverse"] else 1]
    carried = _Carry(set(), {}, int(np.argmax(times)))
    for i, out in zip(layout.carry, layout.carry_out):
        carry, after = program.invars[i], program.outvars[out]
        aval = op.inputs[i]
        by = _increment(program, carry, after) if _is_integer(aval) else None
        if carry is after:
            carried.same.add(i)
        # A counter that is known is the index of something, and is to be known there.
        elif by is not None and not isinstance(primals[i], Tracer):
            carried.counts[i] = np.asarray(primals[i] + by * times, aval.dtype)
        elif not _only_adds(program, carry, after):
            return None
    return carried


def _in_parts(
    step: Callable[[Sequence[Array]], list[Array]],
    known: Sequence[np.ndarray],
    slices: Sequence[Array],
    length: int,
) -> list[Array]:
    """A step at all slices of what is known and what is not, one part after another."""
    ends = [length * n // _PARTS for n in range(_PARTS + 1)]
    parts: list[list[Array]] = []
    for start, stop in itertools.pairwise(ends):
        own = [x[start:stop] for x in slices]
        if parts:
            own, _ = lax.optimization_barrier((own, parts[-1]))
        own = [*(x[start:stop] for x in known), *own]
        if start < stop:
            parts.append(jax.vmap(step, axis_size=stop - start)(own))
    return list(map(jnp.concatenate, zip(*parts)))


def _increment(program: Jaxpr, carry: Var, after: Atom) -> int | None:
    """The number added to an integer of the carry at each step, if it is known."""
    for eqn in program.eqns:
        if any(out is after for out in eqn.outvars) and eqn.primitive.name == "add":
            by = [x.val for x in eqn.invars if isinstance(x, Literal)]
            counts = any(x is carry for x in eqn.invars) and len(by) == 1
            return int(by[0]) if counts else None
    return None


def _is_integer(aval: Aval) -> bool:
    return not aval.shape and jnp.issubdtype(aval.dtype, jnp.integer)


def _only_adds(program: Jaxpr, carry: Var, after: Atom) -> bool:
    """Whether a part of the carry is only read to add something to it."""
    read = [*(v for eqn in program.eqns for v in eqn.invars), *program.outvars]
    count = lambda variable: sum(v is variable for v in read)
    for eqn in program.eqns:
        if any(v is carry for v in eqn.invars):
            is_sum = eqn.primitive.name in ("add", "add_any", *_SAME)
            is_sum |= eqn.primitive.name == "sub" and eqn.invars[0] is carry
            if count(carry) > 1 or not is_sum:
                return False
            (carry,) = eqn.outvars
    return carry is after and count(carry) == 1


# Operations that change at most the type of a number.
_SAME = ("convert_element_type", "copy")


def _is_plain(jaxpr: Program) -> bool:
    """Whether a program is one of JAX's own operations, and runs once for each step.

    Where a step has a loop of unknown length, all would run as long as the longest, and
    what leaves the program may not be batched.
    """
    program, _ = open_jaxpr(jaxpr)
    names = {eqn.primitive.name for eqn in program.eqns}
    if program.effects or not names.isdisjoint(_OTHERS):
        return False
    if not all(is_known(eqn.primitive) for eqn in program.eqns):
        return False
    return all(_is_plain(p) for eqn in program.eqns for p in programs_in(eqn.params))


_OTHERS = {"cond", "while", "pure_callback", "io_callback", "pallas_call", "shard_map"}
