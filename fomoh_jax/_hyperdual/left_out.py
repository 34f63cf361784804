"""Reverse passes through programs that leave elements of a value out.

In a branch that is not taken, as ``vmap`` of ``lax.cond`` has it, or on the side that
``jnp.where`` does not take, derivatives may be infinite. The cotangent there is zero,
and a reverse pass that multiplies the two makes NaN. Here zero wins.
"""

from collections.abc import Collection, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, Inexact

from fomoh_jax._compat import called_jaxpr, open_jaxpr, programs_in
from fomoh_jax._hyperdual.number import is_inexact
from fomoh_jax._types import Leaf, Program

# Operations that give some elements a cotangent of zero, whatever the others get.
_LEAVE_OUT = {
    *("select_n", "max", "min", "clamp", "sort", "top_k", "approx_top_k", "reduce_max"),
    *("reduce_min", "reduce_window_max", "reduce_window_min", "select_and_gather_add"),
    *("cummax", "cummin", "slice", "dynamic_slice", "gather", "pad", "argsort"),
    *("dynamic_update_slice", "scatter", "scatter_min", "scatter_max", "split"),
    *("reduce_window", "reduce_window_sum", "conv_general_dilated", "real", "imag"),
    *("unstack", "reduce", "cond"),
}


# Functions whose values and derivatives are finite where their operands are.
_FINITE = {
    *("add", "add_any", "sub", "neg", "mul", "dot_general", "square", "tanh", "sin"),
    *("cos", "logistic", "erf", "abs", "one_minus_square", "stop_gradient", "reshape"),
    *("broadcast_in_dim", "transpose", "squeeze", "concatenate", "reduce_sum", "rev"),
    *("copy", "convert_element_type", "conv_general_dilated", *_LEAVE_OUT),
}
# The factors of one matrix depend on all of it: whatever of them is left out, no
# cotangent of its elements is zero for that.
_MIX = {"cholesky", "lu"}


def leaves_out(jaxpr: ClosedJaxpr) -> bool:
    """Whether elements of a value may have no part in what a program returns.

    Their derivatives may be infinite, and a reverse pass multiplies these by zero. What
    the program is given is finite, and what follows from it without a root, a quotient,
    a logarithm, an exponential and the like. What a ``custom_jvp`` selects inside
    is left alone: it is its rule that is differentiated, by its slopes.
    """
    return _follow(jaxpr, set(range(len(jaxpr.in_avals)))) is None


def _follow(jaxpr: Program, given: Collection[int]) -> Collection[int] | None:
    """The numbers of the results that are finite with their derivatives.

    None if the program leaves out elements of values that are not.

    Args:
      jaxpr: the program.
      given: which of its inputs are finite with their derivatives.
    """
    program, _ = open_jaxpr(jaxpr)
    finite = {id(x) for i, x in enumerate(program.invars) if i in given}
    finite.update(map(id, program.constvars))
    is_finite = lambda x: (
        isinstance(x, Literal) or id(x) in finite or not is_inexact(x.aval)
    )
    used = _used(program)
    for eqn in program.eqns:
        flags = list(map(is_finite, eqn.invars))
        if eqn.primitive.name == "split" and used.issuperset(map(id, eqn.outvars)):
            results = range(len(eqn.outvars)) if all(flags) else ()  # all parts count
        else:
            results = _results(eqn, flags)
        if results is None:
            return None
        finite.update(id(eqn.outvars[i]) for i in results)
    return [i for i, x in enumerate(program.outvars) if is_finite(x)]


def _used(program: Jaxpr) -> set[int]:
    """The variables on which the program's results depend differentiably."""
    used = {id(x) for x in program.outvars if is_inexact(x.aval)}
    for eqn in reversed(program.eqns):
        if eqn.primitive.name != "stop_gradient" and used.intersection(
            map(id, eqn.outvars)
        ):
            used.update(id(x) for x in eqn.invars if is_inexact(x.aval))
    return used


def _results(eqn: JaxprEqn, finite: Sequence[bool]) -> Collection[int] | None:
    """Like :func:`_follow`, for one equation and its operands."""
    name, every = eqn.primitive.name, range(len(eqn.outvars))
    places = lambda flags: [i for i, flag in enumerate(flags) if flag]
    if name == "jit":
        return _follow(eqn.params["jaxpr"], places(finite))
    if name == "cond":  # under vmap, each branch leaves out what the others give
        given = places(finite[1:])
        branches = [_follow(x, given) or () for x in eqn.params["branches"]]
        return every if all(len(x) == len(every) for x in branches) else None
    if name == "custom_jvp_call":  # its rule is as finite as what it is the rule of
        return _follow(called_jaxpr(eqn.params), places(finite)) or ()
    if any(_follow(program, ()) is None for program in programs_in(eqn.params)):
        return None
    if name in _LEAVE_OUT and not all(finite):
        return None
    of_one = eqn.invars and len(getattr(eqn.invars[0].aval, "shape", ())) == 2
    if name in _MIX and of_one:
        return every
    smooth = name in _FINITE or (name == "integer_pow" and eqn.params["y"] > 0)
    return every if smooth and all(finite) else ()


@jax.custom_vjp
def times_unless_left_out(coefficient: Leaf, x: Array) -> Array:
    """``coefficient * x``; a cotangent that is zero stays so, whatever it meets.

    Linear in ``x``: its reverse pass is not with respect to the coefficient.
    """
    return coefficient * x


@jax.custom_jvp
def _met(coefficient: Leaf, cotangent: Inexact[Array, "*s"]) -> Inexact[Array, "*s"]:
    """``coefficient * cotangent``, zero where the cotangent is."""
    return jnp.where(cotangent == 0, 0, coefficient * cotangent)


@partial(_met.defjvp, symbolic_zeros=True)
def _met_jvp(primals, tangents):
    # A cotangent may be zero by chance, as at a minimum, and its derivatives not: only
    # with an infinite coefficient it tells that an element is left out.
    coefficient, cotangent = primals
    along_coefficient, along_cotangent = tangents
    out = _met(coefficient, cotangent)
    terms = []
    if not isinstance(along_coefficient, SymbolicZero):
        terms.append(_met(along_coefficient, cotangent))
    if not isinstance(along_cotangent, SymbolicZero):
        left_out = (cotangent == 0) & ~jnp.isfinite(coefficient)
        terms.append(jnp.where(left_out, 0, coefficient) * along_cotangent)
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


times_unless_left_out.defvjp(
    lambda coefficient, x: (coefficient * x, coefficient),
    lambda coefficient, cotangent: (None, _met(coefficient, cotangent)),
)
