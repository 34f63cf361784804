"""The plan that is taken where the caller names none."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.sharding import AxisType
from jaxtyping import Array, Float, PyTree

from fomoh_jax._compat import open_jaxpr, primitives_of, programs_in
from fomoh_jax._hyperdual.hessian_by_entries import hessian_by_entries
from fomoh_jax._hyperdual.hessian_by_gradient import hessian_by_gradient
from fomoh_jax._hyperdual.jaxprs import derivative_of
from fomoh_jax._hyperdual.left_out import leaves_out
from fomoh_jax._hyperdual.mesh_axes import exchanged_over, in_shard_map
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.plans.adjoint import Adjoint
from fomoh_jax._hyperdual.plans.forward import Forward
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._hyperdual.registry import is_known
from fomoh_jax._refusals import wrong_kind
from fomoh_jax._types import Aval, Leaf, Program

# With this many directions or more, a reverse pass is the faster plan for models and
# products, or within some percent of it, for every network of experiments.benchmarks
# (the table in docs/benchmarks.md).
_FEWEST = 5

# Operations that a reverse pass cannot take, or only by an error: loops whose length is
# not known, mutable arrays, calls that leave the program, maps over devices, and (from
# jax 0.12 on) the operations of a root.
_FORWARD_ONLY = {
    *("while", "ref", "new_ref", "get", "swap", "addupdate", "freeze"),
    *("pure_callback", "io_callback", "pallas_call", "shard_map", "reduce_window"),
    "call_hi_primitive",
}


def chosen(plan: Plan | Literal["auto"]) -> Plan:
    """The plan, or the one that chooses for ``"auto"``.

    Raises:
      TypeError: if it is no plan.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str) and plan == "auto":
        return Auto()
    expected = '"auto" or a plan, such as fomoh_jax.plans.forward(chunk_size=8)'
    raise wrong_kind("plan", expected, plan)


@dataclasses.dataclass(frozen=True)
class Auto(Plan):
    """A reverse pass where it is known to work and to be faster, or a forward pass.

    It is known to work for one real number as a function of real ones, by a program of
    JAX's own primitives without loops of unknown length. For models and products it is
    known to be faster along at least five directions; for a Hessian, which takes it by
    way of the gradient, along any number. Everything is decided while the program is
    traced.
    """

    def curvatures(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        # Directions that are made again at each equation are not kept for the way back.
        stored = all(x.tangents.is_stored for x in args)
        plan = _plan_of(jaxpr, k, wanted) if stored else Forward()
        return plan.curvatures(jaxpr, k, args, wanted)

    def hessians(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        if _can_reverse(jaxpr, wanted):
            found = hessian_by_entries(jaxpr, args)
            return hessian_by_gradient(jaxpr, args) if found is None else found
        return Forward().hessians(jaxpr, k, args, wanted)

    def products(
        self,
        columns: Callable,
        slopes: Callable,
        primals: PyTree,
        point: Float[Array, " D"],
    ) -> jax.Array:
        # The slopes are those of one number, whose primitives are among theirs.
        jaxpr = jax.make_jaxpr(lambda point: slopes(point)[0])(point)
        # This reverse pass is JAX's own, which makes NaN of an infinite derivative of
        # what is left out.
        plan = Forward() if leaves_out(jaxpr) else _plan_of(jaxpr, point.size, 1)
        return plan.products(columns, slopes, primals, point)


def _plan_of(jaxpr: ClosedJaxpr, k: int, wanted: int) -> Plan:
    return Adjoint() if k >= _FEWEST and _can_reverse(jaxpr, wanted) else Forward()


def _can_reverse(jaxpr: ClosedJaxpr, wanted: int) -> bool:
    """Whether a reverse pass is sure to be able to take a program, of one number."""
    outputs = jaxpr.out_avals[:wanted]
    of_one = len(outputs) == 1 and outputs[0].shape == () and is_inexact(outputs[0])
    if not of_one or outputs[0].weak_type:
        return False
    types = [*jaxpr.in_avals, *map(jax.typeof, open_jaxpr(jaxpr)[1]), *outputs]
    if _any_complex(types) or _any_mapped(types) or exchanged_over(jaxpr):
        return False
    return _reverses(jaxpr)


def _any_complex(types: Sequence[Aval]) -> bool:
    return any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in types)


def _any_mapped(types: Sequence[Aval]) -> bool:
    """Whether arrays may differ between devices, or say how they are sharded."""
    meshes = [jax.sharding.get_abstract_mesh()]
    meshes += [x.sharding.mesh for x in types if hasattr(x, "sharding")]
    explicit = any(AxisType.Explicit in mesh.axis_types for mesh in meshes)
    return explicit or in_shard_map()


def _reverses(jaxpr: Program, *, rules: bool = True) -> bool:
    """Whether a reverse pass is sure to be able to take a program.

    With ``rules``, those of ``jax.custom_jvp`` are looked into as well. They may call
    the function that they are the rules of, and are not looked for in each other.
    """
    return all(_equation_reverses(eqn, rules) for eqn in open_jaxpr(jaxpr)[0].eqns)


def _equation_reverses(eqn: JaxprEqn, rules: bool) -> bool:
    if eqn.primitive.name in _FORWARD_ONLY or not is_known(eqn.primitive):
        return False
    inside = list(programs_in(eqn.params))
    if eqn.primitive.name == "custom_linear_solve":
        # The solver is not differentiated, and may well be a loop. A user may leave
        # out the solver of the transposed system.
        inside = [eqn.params["jaxprs"].matvec]
        if eqn.params["jaxprs"].transpose_solve is None:
            return False
    if not all(_reverses(program, rules=rules) for program in inside):
        return False
    if eqn.primitive.name != "custom_jvp_call":
        return True
    if any("custom_vjp_call" in primitives_of(program) for program in inside):
        return False  # JAX would differentiate that forwards
    if not rules:
        return True
    try:
        return _reverses(derivative_of(eqn), rules=False)
    except Exception:
        # It is the user's rule that is run here, with tangents for all operands, and it
        # may refuse some of them in any way. A forward pass gives it those that it has.
        return False
