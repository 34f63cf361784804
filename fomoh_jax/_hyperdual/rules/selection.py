"""Selections: the linear map that the primal selects, with JAX's choice at ties."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.linear_operations import through
from fomoh_jax._hyperdual.number import HyperDual, spread
from fomoh_jax._hyperdual.registry import Operation, Params, rule
from fomoh_jax._hyperdual.rules.generic import generic
from fomoh_jax._hyperdual.rules.linear import joint_of


@rule(
    *("approx_top_k", "cummax", "cummin", "reduce_max", "reduce_min"),
    *("scatter-max", "scatter-min", "select_and_gather_add"),
    *("select_and_scatter_add", "sort", "top_k"),
)
def selection(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    """``y_t = L(x_t)`` and ``y_s = L(x_s)``, where the primal decides what ``L`` is."""
    return generic(form, op, args, curved=False)


@rule("gather")
def _gather(form: Form, op: Operation, args: Sequence[HyperDual]):
    # Linear, but out of bounds its tangent is 0 where its value may be NaN.
    params = {**op.params, "fill_value": 0}
    channels = _through(dataclasses.replace(op, params=params), args)
    if channels is None:
        return selection(form, op, args)
    (primal,) = op(*(arg.primal for arg in args))
    return [HyperDual(primal, *channels)]


@rule("scatter")
def _scatter(form: Form, op: Operation, args: Sequence[HyperDual]):
    channels = _through(op, args)
    if channels is None:
        return selection(form, op, args)
    (primal,) = op(*(arg.primal for arg in args))
    return [HyperDual(primal, *channels)]


def _through(op: Operation, args: Sequence[HyperDual]) -> list[Channel] | None:
    """The channels of the only result, if those of the operands know a way to them."""
    joint, results = joint_of(op, args), []
    for channels in zip(*(args[i].channels for i in joint.places)):
        is_zero = all(channel.is_zero for channel in channels)
        known = [ZERO] if is_zero else through(joint, channels)
        if known is None:
            return None
        results += known
    return results


@rule("clamp")
def _clamp(form: Form, op: Operation, args: Sequence[HyperDual]):
    return selection(form, op, spread(args, op.outputs[0].shape))


@rule("reduce_window_max", "reduce_window_min")
def _pooling(form: Form, op: Operation, args: Sequence[HyperDual]):
    """Pooling by windows that tile the array, as a sum of all but one element zero.

    XLA has no fast way to carry a second array through a window's comparisons. Of equal
    elements the first is taken, as JAX does.
    """
    (x,), window = args, op.params["window_dimensions"]
    if not _tiles(op.params):
        return selection(form, op, args)
    (primal,) = op(x.primal)
    parts = [size for pair in zip(primal.shape, window) for size in pair]
    inner = tuple(range(1, len(parts), 2))

    def windows(t: Array) -> Array:
        whole = [n * size for n, size in zip(primal.shape, window)]
        return lax.slice(t, [0] * t.ndim, whole).reshape(parts)

    places = np.arange(math.prod(window)).reshape(
        [size if i in inner else 1 for i, size in enumerate(parts)]
    )
    extreme = windows(x.primal) == jnp.expand_dims(primal, inner)
    first = jnp.min(jnp.where(extreme, places, places.size), inner, keepdims=True)
    taken = places == first

    def take(t: Array) -> Array:
        return jnp.sum(jnp.where(taken, windows(t), 0), inner)

    return [HyperDual(primal, *(c.mapped(take, c.axis) for c in x.channels))]


def _tiles(params: Params) -> bool:
    """Whether the windows are side by side, within the array."""
    dilations = (*params["base_dilation"], *params["window_dilation"])
    padded = any(any(pair) for pair in params["padding"])
    side_by_side = params["window_strides"] == params["window_dimensions"]
    return side_by_side and not padded and all(step == 1 for step in dilations)
