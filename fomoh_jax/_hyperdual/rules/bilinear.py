"""Bilinear primitives: ``B(a_s, b) + B(a, b_s) + form(B; a_t, b_t)``."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from fomoh_jax._hyperdual.channels import Channel, Linear
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.number import HyperDual, spread
from fomoh_jax._hyperdual.registry import Operation, rule
from fomoh_jax._hyperdual.rules.generic import generic
from fomoh_jax._types import Leaf


@rule("mul")
def _mul(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    if op.params.get("out_dtype") is not None:  # a widening product
        return generic(form, op, args)
    a, b = spread(args, op.outputs[0].shape)
    (primal,) = op(a.primal, b.primal)
    return [
        HyperDual(
            primal,
            b.primal * a.tangents + a.primal * b.tangents,
            form.scale_seconds(b.primal, a.seconds)
            + form.scale_seconds(a.primal, b.seconds)
            + form.cross(a.tangents, b.tangents),
        )
    ]


def bilinear(
    form: Form,
    op: Operation,
    args: Sequence[HyperDual],
    axis: int = 0,
    *,
    second_axis: int | None = None,
    operations: float = 0,
    paired: Callable | None = None,
    contracted: Callable | None = None,
    linear: Callable[..., Linear] | None = None,
) -> list[HyperDual]:
    """The product rule, twice.

    Operands after the first two are not differentiated.

    Args:
      form: which second-order coefficients are wanted.
      op: the operation.
      args: its operands.
      axis: where the results' stacking axes go.
      second_axis: where the stacking axis of the second operand is moved before it is
        used; by default it stays where it is.
      operations: how many floating-point operations the product takes, if they are
        more than its operands have elements by far.
      paired: ``paired(product, xs, ys)``, of stacks as in :class:`Bilinear`.
      contracted: the sum of the products of two stacks, as in :class:`Bilinear`.
      linear: ``linear(product, place, other)``, the product as a function of either
        operand, at ``place`` 0 or 1, with what is known of it.
    """
    a, b, *rest = args
    fixed = [number.primal for number in rest]

    def product(x, y):
        return op(x, y, *fixed)[0]

    primal = product(a.primal, b.primal)

    linear = linear or (lambda product, place, other: Linear(product))
    by_b = linear(lambda x: product(x, b.primal), 0, b.primal)
    by_a = linear(lambda y: product(a.primal, y), 1, a.primal)
    left = lambda channel: channel.mapped(by_b, axis)
    right = lambda channel: channel.mapped(by_a, axis)
    along = b.tangents
    if not a.is_constant:
        along = _after(a.primal, along)
    if second_axis is not None:
        b = HyperDual(b.primal, along, b.seconds).moved(second_axis)
        along = b.tangents
    tangents = left(a.tangents) + right(along)
    seconds = left(a.seconds) + right(b.seconds)
    if b.seconds.is_zero and not seconds.is_zero:
        along = _after(seconds, along)
    both = Bilinear(
        product,
        paired=paired and partial(paired, product),
        contracted=contracted,
        polarise=_worth_polarising(operations, a.primal, b.primal),
    )
    crossed = form.bilinear(both, a.tangents, along, axis)
    return [HyperDual(primal, tangents, seconds + crossed)]


def _after(first: Leaf | Channel, channel: Channel) -> Channel:
    """The channel, not to be looked at before ``first`` is there.

    What is made of the tangents of a parameter alone, a transposed copy for a matrix
    product above all, could be made at any time, and the cross products of tangents
    before there are seconds to add them to. A compiler that makes them for every layer
    at the start keeps them for every layer, and memory grows with depth. (XLA heeds
    this on the CPU from jax 0.12 on.)
    """
    if channel.is_zero:
        return channel
    return lax.optimization_barrier((channel.stored(), first))[0]


# From so many operations for each element of its operands on, a product is polarised.
# The sums of operands take time and memory too: on two CPU cores, in layers of 256, it
# is slower for a batch of 64 (102 operations for each element) and faster for one of
# 128 (171). And each sum is rounded, which a half precision cannot spare.
_OPERATIONS_PER_ELEMENT = 150


def _worth_polarising(operations: float, a: Leaf, b: Leaf) -> bool:
    elements = jnp.size(a) + jnp.size(b)
    if operations < _OPERATIONS_PER_ELEMENT * elements:
        return False
    return all(jnp.finfo(jnp.result_type(x)).bits >= 32 for x in (a, b))


@rule("conv_general_dilated")
def _conv(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    # The directions fold into the batch (a stacked image) or into the output features
    # (a stacked kernel); the batch dimension is where most of them come from.
    numbers: lax.ConvDimensionNumbers = op.params["dimension_numbers"]
    out, kernel = op.outputs[0], args[1].primal
    window = jnp.size(kernel) / max(1, kernel.shape[numbers.rhs_spec[0]])
    return bilinear(
        form,
        op,
        args,
        axis=numbers.out_spec[0],
        operations=2.0 * window * math.prod(out.shape),
        paired=_one_after_the_other,
    )


def _one_after_the_other(
    product: Callable, xs: Inexact[Array, "q ..."], ys: Inexact[Array, "q ..."]
) -> Inexact[Array, "q ..."]:
    """Products of stacks without ``vmap``, which would make a grouped convolution."""
    if len(xs) > _WRITTEN_OUT:
        return lax.map(lambda pair: product(*pair), (xs, ys))
    return jnp.stack([product(x, y) for x, y in zip(xs, ys)])


# Up to as many convolutions a program is written out; more are a loop.
_WRITTEN_OUT = 32
