"""Selections: the linear map that the primal selects, with JAX's choice at ties."""

from collections.abc import Sequence

from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.number import HyperDual, spread
from fomoh_jax.hyperdual.registry import Operation, rule
from fomoh_jax.hyperdual.rules.generic import generic


@rule(
    *("approx_top_k", "cummax", "cummin", "reduce_max", "reduce_min"),
    *("reduce_window_max", "reduce_window_min", "scatter", "scatter-max"),
    *("scatter-min", "select_and_gather_add", "select_and_scatter_add", "sort"),
    "top_k",
    "gather",  # linear, but out of bounds its tangent is 0 where its value may be NaN
)
def selection(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    """``y_t = L(x_t)`` and ``y_s = L(x_s)``, where the primal decides what ``L`` is."""
    return generic(form, op, args, curved=False)


@rule("clamp")
def _clamp(form: Form, op: Operation, args: Sequence[HyperDual]):
    return selection(form, op, spread(args, op.outputs[0].shape))
