"""Bilinear primitives: ``B(a_s, b) + B(a, b_s) + form(B; a_t, b_t)``."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Inexact

from fomoh_jax._hyperdual.descriptions import Linear
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.number import HyperDual, spread
from fomoh_jax._hyperdual.registry import Operation, rule
from fomoh_jax._hyperdual.rules.decomposed import rewritten
from fomoh_jax._hyperdual.rules.generic import generic


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
    polarise: bool = False,
    paired: Callable | None = None,
    contracted: Callable | None = None,
    linear: Callable[..., Linear] | None = None,
) -> list[HyperDual]:
    r"""The rule of bilinear primitives, :math:`y = B(a, b)`: the product rule, twice.

    .. math:: y_i = B(a_i, b) + B(a, b_i), \qquad
      y_{ij} = B(a_{ij}, b) + B(a, b_{ij}) + B(a_i, b_j) + B(a_j, b_i)

    Operands after the first two are not differentiated.

    Args:
      form: which second-order coefficients are wanted.
      op: the operation.
      args: its operands.
      axis: where the results' stacking axes go.
      second_axis: where the stacking axis of the second operand is moved before it is
        used; by default it stays where it is.
      polarise: as in :class:`Bilinear`.
      paired: ``paired(product, xs, ys)``, of stacks as in :class:`Bilinear`.
      contracted: the sum of the products of two stacks, as in :class:`Bilinear`.
      linear: ``linear(product, place, other)``, the product as a function of either
        operand, at ``place`` 0 or 1, with what is known of it.

    Returns:
      One :class:`HyperDual` for each result.

    Example:
      >>> from jax.extend.core import Primitive
      >>> from fomoh_jax import hyperdual, register_rule
      >>> my_p = Primitive("my_bilinear")
      >>> rule = register_rule(my_p)(hyperdual.bilinear)
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
        along = along.behind(a.primal)
    if second_axis is not None:
        along = along.arranged(second_axis)
        b = HyperDual(b.primal, along, b.seconds.arranged(second_axis))
    tangents = left(a.tangents) + right(along)
    seconds = left(a.seconds) + right(b.seconds)
    if b.seconds.is_zero and not seconds.is_zero:
        along = along.behind(seconds)
    both = Bilinear(
        product,
        paired=paired and partial(paired, product),
        contracted=contracted,
        polarise=polarise,
        looped=paired is not None,
        linears=(by_b, by_a),
    )
    crossed = form.bilinear(both, a.tangents, along, axis)
    return [HyperDual(primal, tangents, seconds + crossed)]


def is_worth_polarising(op: Operation, terms: float, *, fewest: float = 150) -> bool:
    """Whether a product costs so much more than its operands that their sums pay.

    The sums of operands take time and memory too: on two CPU cores, in layers of 256, a
    product of sums is slower for a batch of 64 (102 operations for each element) and
    faster for one of 128 (171). And each sum is rounded, which a half precision cannot
    spare.

    Args:
      op: the product.
      terms: how many products are summed in each element of the result.
      fewest: floating-point operations for each element of the operands.
    """
    operands = op.inputs[:2]
    operations = 2 * terms * math.prod(op.outputs[0].shape)
    if operations < fewest * sum(math.prod(x.shape) for x in operands):
        return False
    return all(jnp.finfo(x.dtype).bits >= 32 for x in operands)


@rule("conv_general_dilated")
def _conv(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    # The directions fold into the batch (a stacked image) or into the output features
    # (a stacked kernel); the batch dimension is where most of them come from.
    numbers: lax.ConvDimensionNumbers = op.params["dimension_numbers"]
    kernel = op.inputs[1].shape
    window = math.prod(kernel) // max(1, kernel[numbers.rhs_spec[0]])
    x, weights, size = *args, math.prod(op.outputs[0].shape)
    grouped = op.params["feature_group_count"] * op.params["batch_group_count"] > 1
    apart = all(channel.is_summed_apart(window, size) for channel in x.channels)
    if apart and weights.is_constant and not grouped:
        return rewritten(partial(_windows_times_kernel, op), form, args)
    return bilinear(
        form,
        op,
        args,
        axis=numbers.out_spec[0],
        polarise=is_worth_polarising(op, window, fewest=_CONVOLUTION),
        paired=_one_after_the_other,
    )


def _windows_times_kernel(op: Operation, x: Array, kernel: Array) -> Array:
    """The convolution, as a product of the elements in each window with the kernel."""
    params, numbers = op.params, op.params["dimension_numbers"]
    batch, features, *spatial = numbers.lhs_spec
    out_features, in_features, *taps = numbers.rhs_spec
    gap = [d - 1 for d in params["lhs_dilation"]]
    config = [(0, 0, 0)] * 2 + [(*pad, g) for pad, g in zip(params["padding"], gap)]
    x = lax.transpose(x, (batch, features, *spatial))
    x = lax.pad(x, lax.full_like(x, 0, shape=()), config)
    kernel = lax.transpose(kernel, (*taps, in_features, out_features))
    sizes, strides = kernel.shape[:-2], params["window_strides"]
    lengths = [op.outputs[0].shape[i] for i in numbers.out_spec[2:]]

    def shifted(tap: tuple[int, ...]) -> Array:
        starts = [n * dilation for n, dilation in zip(tap, params["rhs_dilation"])]
        stops = [
            start + (length - 1) * stride + 1
            for start, length, stride in zip(starts, lengths, strides)
        ]
        full = x.shape[:2]
        return lax.slice(x, (0, 0, *starts), (*full, *stops), (1, 1, *strides))

    windows = jnp.stack([shifted(tap) for tap in np.ndindex(*sizes)])
    out = jnp.einsum(
        "tbi...,tio->bo...",
        windows,
        kernel.reshape(-1, *kernel.shape[-2:]),
        precision=params["precision"],
        preferred_element_type=op.outputs[0].dtype,
    )
    return lax.transpose(out, np.argsort(numbers.out_spec))


# All products of two stacks are one large convolution, which pays where channels are
# few: on two CPU cores it is faster and smaller for 3×3 windows of 16 channels (283
# operations for each element), and slower for those of 32 (500 to 570).
_CONVOLUTION = 400


def _one_after_the_other(
    product: Callable, xs: Inexact[Array, "q ..."], ys: Inexact[Array, "q ..."]
) -> Inexact[Array, "q ..."]:
    """Products of stacks without ``vmap``, which would make a grouped convolution."""
    if len(xs) > _WRITTEN_OUT:
        return lax.map(lambda pair: product(*pair), (xs, ys))
    return jnp.stack([product(x, y) for x, y in zip(xs, ys)])


# The most convolutions that are written out in a program; more are a loop.
_WRITTEN_OUT = 32
