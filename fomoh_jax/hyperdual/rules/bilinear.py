"""Bilinear primitives: ``B(a_s, b) + B(a, b_s) + form(B; a_t, b_t)``."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax import lax

from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.number import (
    HyperDual,
    Stack,
    add,
    apply_linear,
    scale,
    spread,
)
from fomoh_jax.hyperdual.registry import Operation, rule
from fomoh_jax.hyperdual.rules.generic import generic


@rule("mul")
def _mul(form: Form, op: Operation, args: Sequence[HyperDual]):
    if op.params.get("out_dtype") is not None:  # a widening product
        return generic(form, op, args)
    a, b = spread(args, op.outputs[0].shape)
    (primal,) = op(a.primal, b.primal)
    return [
        HyperDual(
            primal,
            add(scale(b.primal, a.tangents), scale(a.primal, b.tangents)),
            add(
                scale(b.primal, a.seconds),
                scale(a.primal, b.seconds),
                form.cross(a.tangents, b.tangents),
            ),
        )
    ]


def bilinear(
    form: Form,
    op: Operation,
    args: Sequence[HyperDual],
    axis: int = 0,
    contract: Callable[[Stack, Stack], jax.Array] | None = None,
) -> list[HyperDual]:
    """The product rule, twice, with the stacking axis of every term at ``axis``.

    Operands after the first two are not differentiated. ``contract`` is as in
    :meth:`Form.bilinear`.
    """
    a, b, *rest = args
    fixed = [number.primal for number in rest]

    def product(x, y):
        return op(x, y, *fixed)[0]

    primal = product(a.primal, b.primal)

    def left(channel):
        function = lambda x: [product(x, b.primal)]
        return apply_linear(function, [channel], [None], [axis])[0]

    def right(channel):
        function = lambda y: [product(a.primal, y)]
        return apply_linear(function, [channel], [None], [axis])[0]

    return [
        HyperDual(
            primal,
            add(left(a.tangents), right(b.tangents)),
            add(
                left(a.seconds),
                right(b.seconds),
                form.bilinear(product, a.tangents, b.tangents, axis, contract=contract),
            ),
        )
    ]


@rule("dot_general")
def _dot_general(form: Form, op: Operation, args: Sequence[HyperDual]):
    # `[batch, rows, columns]` is the natural result of a product; with the directions
    # between its rows and its columns, `a · [b_1 … b_k]`, `[a_1 … a_k] · b` and all the
    # cross products are one matrix product each, with no transpose.
    (contracted, _), (batch, _) = op.params["dimension_numbers"]
    a = args[0].primal
    rows = a.ndim - len(contracted) - len(batch)

    def contract(a: Stack, b: Stack) -> jax.Array:
        return _contracted(op, a, b)

    return bilinear(form, op, args, len(batch) + rows, contract)


def _contracted(op: Operation, a: Stack, b: Stack) -> jax.Array:
    """``Σ_i a_i · b_i``: the directions are one more contracted dimension."""
    contracted, batch = op.params["dimension_numbers"]
    shifted = lambda dims, axis: tuple(d + (d >= axis) for d in dims)
    numbers = (
        tuple((x.axis, *shifted(dims, x.axis)) for dims, x in zip(contracted, (a, b))),
        tuple(shifted(dims, x.axis) for dims, x in zip(batch, (a, b))),
    )
    params = {**op.params, "dimension_numbers": numbers}
    return dataclasses.replace(op, params=params)(a.array, b.array)[0]


@rule("conv_general_dilated")
def _conv(form: Form, op: Operation, args: Sequence[HyperDual]):
    # The directions fold into the batch (a stacked image) or into the output features
    # (a stacked kernel); the batch dimension is where most of them come from.
    numbers: lax.ConvDimensionNumbers = op.params["dimension_numbers"]
    return bilinear(form, op, args, axis=numbers.out_spec[0])


@rule("ragged_dot_general")
def _ragged_dot(form: Form, op: Operation, args: Sequence[HyperDual]):
    return bilinear(form, op, args)
