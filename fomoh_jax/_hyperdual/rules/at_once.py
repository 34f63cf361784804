"""Loops and branches as programs without control flow, where their parts are local.

A step of a loop has no table of its own: which variables it sees changes with time. If
no step waits for another, all of them are one program over arrays of all the steps, and
the tables are those of its operations. So are the branches of a condition, if one is
selected from the results of all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal, Var, jaxpr_as_fun
from jaxtyping import Array

from fomoh_jax._compat import ScanLayout, open_jaxpr, programs_in
from fomoh_jax._hyperdual.registry import Operation
from fomoh_jax._types import Aval, Leaf, Program


def all_steps(
    op: Operation, layout: ScanLayout, primals: Sequence[Leaf]
) -> Callable[..., list[Array]] | None:
    """A scan as a program over all its steps, or None if one waits for another.

    None does where each part of the carry counts the steps, or only has something added
    to it that does not depend on the carry.
    """
    jaxpr, length = op.params["jaxpr"], op.params["length"]
    if not length or not _is_pure(jaxpr):
        return None
    program, _ = open_jaxpr(jaxpr)
    times = np.arange(length)[:: -1 if op.params["reverse"] else 1]
    counts: dict[int, Any] = {}
    for i, out in zip(layout.carry, layout.carry_out):
        carry, after = program.invars[i], program.outvars[out]
        aval = op.inputs[i]
        by = _increment(program, carry, after) if _is_integer(aval) else None
        # A counter that is known is the index of something, and is to be known there.
        if by is not None and not isinstance(primals[i], Tracer):
            counts[i] = np.asarray(primals[i] + by * times, aval.dtype)
        elif not _only_adds(program, carry, after):
            return None

    def at_once(*args: Array) -> list[Array]:
        def step(xs: Sequence[Array]) -> list[Array]:
            operands = list(args)
            for i in layout.carry:
                operands[i] = lax.full_like(args[i], 0)
            for i, x in zip((*counts, *layout.xs), xs):
                operands[i] = x
            return jaxpr_as_fun(jaxpr)(*operands)

        slices = [*counts.values(), *(args[i] for i in layout.xs)]
        outs = list(jax.vmap(step, axis_size=length)(slices))
        for i, out in zip(layout.carry, layout.carry_out):
            if i in counts:
                outs[out] = outs[out][np.argmax(times)]
            else:
                outs[out] = args[i] + outs[out].sum(0, dtype=args[i].dtype)
        return outs

    return at_once


def all_branches(op: Operation) -> Callable[..., list[Array]] | None:
    """A condition as a program that selects from the results of all its branches.

    None if one of them has effects, or a loop that may never end.
    """
    branches = op.params["branches"]
    if op.params.get("branches_platforms") or not all(map(_is_pure, branches)):
        return None

    def program(index: Array, *operands: Array) -> list[Array]:
        results = [jaxpr_as_fun(branch)(*operands) for branch in branches]
        index = jnp.clip(index, 0, len(branches) - 1)
        return [lax.select_n(index, *outs) for outs in zip(*results)]

    return program


def _increment(program: Jaxpr, carry: Var, after: Any) -> int | None:
    """What is added to an integer of the carry at each step, if it is known."""
    for eqn in program.eqns:
        if eqn.outvars[0] is after and eqn.primitive.name == "add":
            x, by = eqn.invars
            return int(by.val) if x is carry and isinstance(by, Literal) else None
    return None


def _is_integer(aval: Aval) -> bool:
    return not aval.shape and jnp.issubdtype(aval.dtype, jnp.integer)


def _only_adds(program: Jaxpr, carry: Var, after: Any) -> bool:
    """Whether a part of the carry is read once, to add something to it."""
    read = [*(v for eqn in program.eqns for v in eqn.invars), *program.outvars]
    count = lambda variable: sum(v is variable for v in read)
    for eqn in program.eqns:
        if any(v is carry for v in eqn.invars):
            (out, *_), name = eqn.outvars, eqn.primitive.name
            if count(carry) > 1 or name not in ("add", "add_any", *_SAME):
                return False
            if out is after:
                return count(after) == 1 and name not in _SAME
            if name not in _SAME:
                return False
            carry = out
    return False


# What changes the type of a number alone.
_SAME = ("convert_element_type", "copy")


def _is_pure(jaxpr: Program) -> bool:
    program, _ = open_jaxpr(jaxpr)
    if program.effects:
        return False
    if any(eqn.primitive.name == "while" for eqn in program.eqns):
        return False
    return all(_is_pure(p) for eqn in program.eqns for p in programs_in(eqn.params))
