"""The Hessian of a sum of terms that see few variables each, by its entries alone.

This is no plan: it computes whole Hessians of one number, and neither models nor
products. :class:`~fomoh_jax._hyperdual.plans.auto.Auto` takes it where it is the least
work.

Along ``D`` coordinates a chain of neighbours has three entries in a row; its gradient
pushed along all the coordinates would compute ``D`` of them. Here pairs of coordinates
that meet in no term are never computed (:mod:`fomoh_jax._hyperdual.local_pairs`).
Whether that is the least work is found by tracing it: what is traced and not taken is
never run.
"""

import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array

from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.inlining import inlined
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.local import unit_vectors
from fomoh_jax._hyperdual.local_pairs import AllLocal, added_up
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.parts import NotLocalError
from fomoh_jax._hyperdual.registry import operation_of
from fomoh_jax._types import Leaf, Program


def hessian_by_entries(
    jaxpr: ClosedJaxpr, args: Sequence[HyperDual]
) -> tuple[list[HyperDual], list[Leaf]] | None:
    """Returns ``Plan.hessians`` of a program whose first output is one number.

    Returns None if that would be no less work than the gradient along every coordinate.
    """
    primals = [arg.primal for arg in args]
    size = sum(map(jnp.size, primals))
    form = AllLocal(size)
    # With more slots there are more pairs than a gradient has coordinates.
    most = math.isqrt(8 * size)

    def program(*primals: Leaf) -> tuple[list[Leaf], Array, Array]:
        numbers = list(map(HyperDual, primals, unit_vectors(primals, most)))
        outs = interpret(inlined(jaxpr), form, numbers)
        numbers, values = added_up(outs[0].seconds, form)
        rows, columns, source = form.entries(numbers)
        places = jnp.zeros((size, size), values.dtype).at[rows, columns]
        entries = values.at[source].get(mode="promise_in_bounds")
        matrix = places.set(entries, indices_are_sorted=True, unique_indices=True)
        slopes = outs[0].tangents.whole(size).array
        return [out.primal for out in outs], slopes, matrix

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            traced, shapes = jax.make_jaxpr(program, return_shape=True)(*primals)
        except NotLocalError:
            return None
        if _work(traced) > size * _work(jaxpr):
            return None
    for x in said:  # the other way would say it by itself
        warnings.warn_explicit(x.message, x.category, x.filename, x.lineno)
    results = jaxpr_as_fun(traced)(*primals)
    (out, *aux), slopes, matrix = jax.tree.unflatten(
        jax.tree.structure(shapes), results
    )
    return [HyperDual(out, Stack(slopes)), *map(HyperDual, aux)], [matrix]


# XLA on the CPU moves elements by their indices one by one, in the time of so many
# operations.
_MOVED = 16


def _work(jaxpr: Program) -> int:
    """About how many operations a program is."""
    return sum(map(_operations, open_jaxpr(jaxpr)[0].eqns))


def _operations(eqn: JaxprEqn) -> int:
    inside = sum(map(_work, programs_in(eqn.params)))
    if inside:
        return inside * eqn.params.get("length", 1)
    op, terms = operation_of(eqn), 1
    if eqn.primitive.name.startswith("scatter"):
        return _MOVED * math.prod(op.inputs[2].shape)
    if eqn.primitive.name == "gather":
        terms = _MOVED
    elif eqn.primitive.name == "dot_general":
        (over, _), _ = op.params["dimension_numbers"]
        terms = math.prod(op.inputs[0].shape[i] for i in over)
    elif eqn.primitive.name == "conv_general_dilated":
        kernel, numbers = op.inputs[1].shape, op.params["dimension_numbers"]
        terms = math.prod(kernel) // max(1, kernel[numbers.rhs_spec[0]])
    return terms * sum(math.prod(getattr(out, "shape", ())) for out in op.outputs)
