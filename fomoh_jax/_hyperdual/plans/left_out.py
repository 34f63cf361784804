"""Reverse passes through programs that leave elements of a value out.

In a branch that is not taken, as ``vmap`` of ``lax.cond`` has it, or on the side that
``jnp.where`` does not take, derivatives may be infinite. The cotangent there is zero,
and a reverse pass that multiplies the two makes NaN. Here zero wins.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jaxtyping import Array, Inexact

from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._types import Leaf, Program

# A cotangent of some of their elements is zero, whatever the others are.
_LEAVE_OUT = {
    *("select_n", "max", "min", "clamp", "sort", "top_k", "approx_top_k", "reduce_max"),
    *("reduce_min", "reduce_window_max", "reduce_window_min", "select_and_gather_add"),
    *("cummax", "cummin", "slice", "dynamic_slice", "gather", "pad", "argsort"),
    *("dynamic_update_slice", "scatter", "scatter_min", "scatter_max", "split"),
    *("reduce_window", "reduce_window_sum", "conv_general_dilated", "real", "imag"),
    *("unstack", "reduce", "cond"),
}


def leaves_out(jaxpr: ClosedJaxpr) -> bool:
    """Whether elements of a value may have no part in what a program returns.

    Their derivatives may be infinite, and a reverse pass multiplies these by zero.
    Those of what the program is given are finite. What a ``custom_jvp`` selects inside
    is not looked at: it is its rule that is differentiated, by its slopes.
    """
    program, _ = open_jaxpr(jaxpr)
    given = set(map(id, (*program.invars, *program.constvars)))
    for eqn in program.eqns:
        of_given = all(id(x) in given or isinstance(x, Literal) for x in eqn.invars)
        if not of_given and eqn.primitive.name in _LEAVE_OUT:
            return True
        if any(map(_selects, _differentiated_in(eqn))):
            return True
    return False


def _selects(jaxpr: Program) -> bool:
    """Whether a program leaves out anything, be it of what it is given."""
    return any(
        eqn.primitive.name in _LEAVE_OUT or any(map(_selects, _differentiated_in(eqn)))
        for eqn in open_jaxpr(jaxpr)[0].eqns
    )


def _differentiated_in(eqn: JaxprEqn) -> list[Program]:
    """The programs inside an equation through which a reverse pass leads."""
    custom = eqn.primitive.name == "custom_jvp_call"
    return [] if custom else list(programs_in(eqn.params))


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


@_met.defjvp
def _met_jvp(primals, tangents):
    # Along k directions the tangents are k times as many: what is asked of each element
    # is asked of the primals. A cotangent may be zero by chance, as at a minimum, and
    # its tangent not: only an infinite coefficient tells that the element is left out.
    coefficient, cotangent = primals
    along_coefficient, along_cotangent = tangents
    zero = cotangent == 0
    met = jnp.where(zero & ~jnp.isfinite(coefficient), 0, coefficient)
    changed = jnp.where(zero, 0, along_coefficient * cotangent)
    return _met(coefficient, cotangent), changed + met * along_cotangent


times_unless_left_out.defvjp(
    lambda coefficient, x: (coefficient * x, coefficient),
    lambda coefficient, cotangent: (None, _met(coefficient, cotangent)),
)
