"""Linear primitives: map the primitive itself over the channels."""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Array

from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.composite import joined, repeated
from fomoh_jax._hyperdual.descriptions import Joint
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.linear_operations import apply_linear, through
from fomoh_jax._hyperdual.number import HyperDual, is_inexact, spread
from fomoh_jax._hyperdual.registry import Operation, Params, rule


@rule(
    *("add_jaxvals", "complex", "conj"),
    *("convert_element_type", "copy", "copy_p", "cumsum", "device_put"),
    *("dynamic_slice", "dynamic_update_slice", "fft", "imag", "layout_constraint"),
    *("name", "neg", "optimization_barrier", "pad", "real", "reduce_precision"),
    *("reduce_sum", "reduce_window_sum", "reshape", "reshard", "rev", "scatter-sub"),
    *("scatter_add", "select_n", "sharding_constraint", "slice", "split", "squeeze"),
    *("stack", "sub", "tile", "transpose", "unstack", "xla_metadata_value"),
    # Between the devices of a shard_map, or the members of a vmap with an axis name.
    *("all_gather", "all_gather_invariant", "all_gather_reduced", "all_to_all"),
    *("pbroadcast", "ppermute", "preduced", "psum", "psum_invariant"),
    *("reduce_scatter", "reduced_vary_cast", "reduced_vary_cast_p", "unreduced_psum"),
    *("unreduced_reduce_scatter", "vary_unreduced_cast", "vary_unreduced_cast_p"),
)
def linear(
    form: Form,
    op: Operation,
    args: Sequence[HyperDual],
    compose: Callable[[Sequence[Channel]], Channel | None] | None = None,
) -> list[HyperDual]:
    r"""The rule of linear primitives, :math:`y = L(x)`.

    .. math:: y_i = L(x_i), \qquad y_{ij} = L(x_{ij})

    jointly in all the operands that vary. An operand that cannot vary (an index, a
    predicate) keeps its primal; one that could but does not contributes zero.

    Args:
      form: which second-order coefficients are wanted.
      op: the operation.
      args: its operands.
      compose: makes a channel of the only result that is not put together yet, or
        returns ``None``.

    Returns:
      One :class:`HyperDual` for each result.

    Example:
      >>> from jax.extend.core import Primitive
      >>> from fomoh_jax import hyperdual, register_rule
      >>> my_p = Primitive("my_linear")
      >>> rule = register_rule(my_p)(hyperdual.linear)
    """
    outs = op(*(arg.primal for arg in args))
    carried = [i for i, out in enumerate(outs) if is_inexact(out)]
    joint = joint_of(op, args)

    def mapped(channels: Sequence[Channel]) -> dict[int, Channel]:
        known = through(joint, channels) if carried else []
        if known is not None:
            return dict(zip(carried, known))
        composite = compose and compose(channels)
        if composite is not None:
            return {carried[0]: composite}
        axes = [_out_axis(op, channels, outs[i].ndim) for i in carried]
        return dict(zip(carried, apply_linear(joint, channels, axes)))

    tangents = mapped([args[i].tangents for i in joint.places])
    seconds = mapped([args[i].seconds for i in joint.places])
    return [
        HyperDual(out, tangents.get(i, ZERO), seconds.get(i, ZERO))
        for i, out in enumerate(outs)
    ]


def joint_of(op: Operation, args: Sequence[HyperDual]) -> Joint:
    """The operation as a function of the operands that can vary."""
    operands = [arg.primal for arg in args]
    places = [i for i, operand in enumerate(operands) if is_inexact(operand)]
    carried = [i for i, out in enumerate(op.outputs) if is_inexact(out)]

    def function(*xs: Array) -> list[Array]:
        full = list(operands)
        for i, x in zip(places, xs):
            full[i] = x
        results = op(*full)
        return [results[i] for i in carried]

    return Joint(function, op.primitive.name, op.params, operands, places)


@rule("broadcast_in_dim")
def _broadcast(form: Form, op: Operation, args: Sequence[HyperDual]):
    """The broadcast is left to what needs it, where it repeats elements."""
    inner, shape = op.inputs[0].shape, op.outputs[0].shape
    dimensions = tuple(map(int, op.params["broadcast_dimensions"]))
    repeats = math.prod(inner) < math.prod(shape)
    placed = op.params.get("sharding") is not None  # said, and not to be found out

    def compose(channels: Sequence[Channel]) -> Channel | None:
        (channel,) = channels
        if not repeats or placed or not inner or channel.is_zero:
            return None
        axis = _out_axis(op, channels, len(shape))
        return repeated(channel, inner, shape, dimensions, axis)

    return linear(form, op, args, compose)


@rule("concatenate")
def _concatenate(form: Form, op: Operation, args: Sequence[HyperDual]):
    shapes = [x.shape for x in op.inputs]
    compose = lambda channels: joined(channels, shapes, int(op.params["dimension"]))
    return linear(form, op, args, compose)


@rule("add")
def _add(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    a, b = spread(args, op.outputs[0].shape)
    (primal,) = op(a.primal, b.primal)
    return [HyperDual(primal, a.tangents + b.tangents, a.seconds + b.seconds)]


def _out_axis(op: Operation, channels: Sequence[Channel], ndim: int) -> int:
    """The stacking axis of the result for which no transpose is needed."""
    axis = max((channel.axis for channel in channels), default=0)
    follow = _FOLLOW.get(op.primitive.name)
    return min(follow(axis, op.params) if follow else axis, ndim)


def _follow_broadcast(axis: int, params: Params) -> int:
    places = params["broadcast_dimensions"]
    if axis == 0:  # it stays in front, so that what meets the result need not move
        return 0
    if axis < len(places):
        return int(places[axis])
    return int(places[-1]) + 1 if places else len(params["shape"])


def _follow_transpose(axis: int, params: Params) -> int:
    permutation = params["permutation"]
    return permutation.index(axis) if axis < len(permutation) else axis


def _follow_removal(name: str) -> Callable[[int, Params], int]:
    return lambda axis, params: axis - sum(int(d < axis) for d in params[name])


# Operations that move the dimension before which the stacking axis sits.
_FOLLOW = {
    "broadcast_in_dim": _follow_broadcast,
    "transpose": _follow_transpose,
    "reduce_sum": _follow_removal("axes"),
    "squeeze": _follow_removal("dimensions"),
}
