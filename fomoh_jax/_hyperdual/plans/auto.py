"""The plan that is taken where the caller names none."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.sharding import AxisType
from jaxtyping import Array, Float, PyTree

from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._hyperdual.mesh_axes import in_shard_map
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.plans.adjoint import Adjoint
from fomoh_jax._hyperdual.plans.forward import Forward
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._hyperdual.registry import is_known
from fomoh_jax._types import Leaf, Program

# From so many directions on, the reverse pass is as fast as a forward pass or faster:
# for all the networks of the benchmarks, a logistic regression and a Gaussian process.
_FEWEST = 5

# What a reverse pass cannot take, or only by an error: loops whose length is not known,
# mutable arrays, what leaves the program, and maps over devices.
_FORWARD_ONLY = {
    *("while", "ref", "new_ref", "get", "swap", "addupdate", "freeze"),
    *("pure_callback", "io_callback", "pallas_call", "shard_map"),
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
    hint = " Did you forget to call it?" if callable(plan) else ""
    raise TypeError(
        'plan must be "auto" or a plan, such as fomoh_jax.plans.forward(chunk_size=8); '
        f"got {plan!r}.{hint}"
    )


@dataclasses.dataclass(frozen=True)
class Auto(Plan):
    """A reverse pass where it is known to work and to be faster, or a forward pass.

    It is known to be faster for one real number as a function of real ones, along at
    least five directions. It works for programs of JAX's own primitives without loops
    of unknown length. Everything is decided while the program is traced.
    """

    def curvatures(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        # Directions that are made again at each equation are not kept for the way back.
        stored = all(x.tangents.is_stored for x in args)
        plan = _plan_of(jaxpr, k, wanted) if stored else Forward()
        return plan.curvatures(jaxpr, k, args, wanted)

    def products(
        self,
        columns: Callable,
        slopes: Callable,
        primals: PyTree,
        point: Float[Array, " D"],
    ) -> jax.Array:
        # The slopes are those of one number, whose primitives are among theirs.
        of_one = lambda point: slopes(point)[0]
        plan = _plan_of(jax.make_jaxpr(of_one)(point), point.size, 1)
        return plan.products(columns, slopes, primals, point)


def _plan_of(jaxpr: ClosedJaxpr, k: int, wanted: int) -> Plan:
    outputs = jaxpr.out_avals[:wanted]
    of_one = len(outputs) == 1 and outputs[0].shape == () and is_inexact(outputs[0])
    types = [*jaxpr.in_avals, *outputs]
    is_real = not any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in types)
    if k >= _FEWEST and of_one and is_real and not _is_mapped() and _reverses(jaxpr):
        return Adjoint()
    return Forward()


def _is_mapped() -> bool:
    """Whether arrays may differ between devices, or say how they are sharded."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    return in_shard_map() or AxisType.Explicit in kinds


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
        # How it is solved is not differentiated, and may well be a loop. A user may
        # leave out how to solve the transposed system.
        inside = [eqn.params["jaxprs"].matvec]
        if eqn.params["jaxprs"].transpose_solve is None:
            return False
    if not all(_reverses(program, rules=rules) for program in inside):
        return False
    has_rule = eqn.primitive.name == "custom_jvp_call" and rules
    return not has_rule or _reverses(_derivative(eqn), rules=False)


def _derivative(eqn: JaxprEqn) -> ClosedJaxpr:
    """The program of the first derivative of an equation."""
    types = [x.aval for x in eqn.invars]
    places = [i for i, x in enumerate(types) if is_inexact(x)]

    def derivative(*operands):
        def of_some(*some):
            full = dict(enumerate(operands)) | dict(zip(places, some))
            params = eqn.primitive.get_bind_params(eqn.params)
            return eqn.primitive.bind(*full.values(), **params)

        some = [operands[i] for i in places]
        return jax.jvp(of_some, some, some)

    return jax.make_jaxpr(derivative)(*types)
