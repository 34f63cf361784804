"""Products of arrays: the directions fold into the rows or the columns of one matrix.

`[batch, rows, columns]` is the natural result of a product. With the directions between
its rows and its columns, ``a · [b_1 … b_k]``, ``[a_1 … a_k] · b`` and all the cross
products are one matrix product each, with no transpose of the result.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Array

from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.descriptions import Indices, Linear
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.registry import Operation, rule
from fomoh_jax._hyperdual.rules.bilinear import bilinear, is_worth_polarising
from fomoh_jax._hyperdual.rules.decomposed import rewritten
from fomoh_jax._hyperdual.rules.linear import linear
from fomoh_jax._types import Leaf


@rule("dot_general")
def _dot_general(form: Form, op: Operation, args: Sequence[HyperDual]):
    a, b = args
    over = op.params["dimension_numbers"][0][0]
    terms = math.prod(op.inputs[0].shape[i] for i in over)
    channels = (*a.channels, *b.channels)
    size = math.prod(op.outputs[0].shape)
    both_vary = not (a.is_constant or b.is_constant)
    if both_vary and all(x.is_summed_apart(terms, size) for x in channels):
        return rewritten(partial(_sum_of_terms, op), form, args)
    if not _is_better_swapped(op, a.primal, b.primal):
        return _product(form, op, a, b)
    swapped, back = _swapped(op, a.primal)
    return linear(form, back, _product(form, swapped, b, a))


def _sum_of_terms(op: Operation, a: Array, b: Array) -> Array:
    """The product, as the sum over elementwise products that it is."""
    count = len(op.params["dimension_numbers"][0][0])
    return lax.reduce_sum(_terms(op, a, b, range(count)), range(count))


def _terms(op: Operation, a: Leaf, b: Leaf, apart: Sequence[int]) -> Array:
    """The terms of the sum over some of the contracted dimensions, which lead.

    Args:
      op: the product.
      a, b: its operands.
      apart: which of the contracted dimensions, by their place among these.
    """
    contracted, batched = op.params["dimension_numbers"]
    (out,) = op.outputs
    leading = [[over[i] for i in apart] for over in contracted]
    rest = [[d for i, d in enumerate(over) if i not in apart] for over in contracted]
    if rest[0]:
        batch = [(*first, *rest) for first, rest in zip(leading, batched)]
        params = {**op.params, "dimension_numbers": (tuple(map(tuple, rest)), batch)}
        return dataclasses.replace(op, params=params)(a, b)[0]
    free = [
        [i for i in range(x.ndim) if i not in (*over, *batch)]
        for x, over, batch in zip((a, b), contracted, batched)
    ]

    lead = len(leading[0]) + len(batched[0])

    def spread(x: Leaf, place: int) -> Array:
        """An operand with the result's dimensions, of size 1 along the other's own."""
        x = lax.transpose(x, (*leading[place], *batched[place], *free[place]))
        start = lead + (0 if place else len(free[0]))
        return lax.expand_dims(x, range(start, start + len(free[1 - place])))

    x, y = (spread(x, place).astype(out.dtype) for place, x in enumerate((a, b)))
    shape = np.broadcast_shapes(x.shape, y.shape)
    return jnp.broadcast_to(x, shape) * jnp.broadcast_to(y, shape)


def _product(form: Form, op: Operation, a: HyperDual, b: HyperDual) -> list[HyperDual]:
    (over_a, over_b), (batch_a, batch_b) = op.params["dimension_numbers"]
    rows = a.primal.ndim - len(over_a) - len(batch_a)
    second_axis = None
    if batch_a:
        a, b = map(_finished, (a, b))
        # Moving the axis of b is less work than moving that of the result.
        if b.primal.size < math.prod(op.outputs[0].shape):
            columns = set(range(b.primal.ndim)) - {*over_b, *batch_b}
            second_axis = min(columns, default=0)
    inner = math.prod(a.primal.shape[i] for i in over_a)
    return bilinear(
        form,
        op,
        [a, b],
        axis=_out_axis(op, a, b, len(batch_a) + rows),
        second_axis=second_axis,
        polarise=is_worth_polarising(op, inner),
        contracted=partial(_contracted, op),
        linear=partial(_linear, op, (a.primal.ndim, b.primal.ndim)),
    )


def _out_axis(op: Operation, a: HyperDual, b: HyperDual, between: int) -> int:
    """The stacking axis of the result.

    It is ``between`` the rows and the columns, if it may be the columns that vary.
    Where the first operand varies alone, the directions stay where they are among its
    rows.
    """
    if not b.is_constant:
        return between
    (over, _), (batch, _) = op.params["dimension_numbers"]
    free = set(range(a.primal.ndim)) - {*over, *batch}
    axis = max(channel.axis for channel in a.channels)
    return len(batch) + sum(dim < axis for dim in free)


def _finished(number: HyperDual) -> HyperDual:
    """The number, with its seconds computed before a product reads them.

    XLA on the CPU (jax 0.12) takes a whole softmax into the batch of products that
    follows it, and is slower at both than at one after the other.
    """
    seconds = jax.tree.map(lax.optimization_barrier, number.seconds)
    return HyperDual(number.primal, number.tangents, seconds)


def _is_better_swapped(op: Operation, a: Leaf, b: Leaf) -> bool:
    """Whether to compute ``b · a`` and to transpose that, because it is small.

    A matrix product reads its first operand along rows and its second one along
    columns. Where ``a`` is ``[inner, rows]`` and ``b`` is ``[columns, inner]``, as
    ``einsum`` writes the second product of attention, both would be transposed.
    """
    (over_a, over_b), (batch, _) = op.params["dimension_numbers"]
    if not over_a or not batch or math.prod(op.outputs[0].shape) >= b.size:
        return False
    if op.params.get("out_sharding") is not None:
        return False
    if isinstance(op.params["precision"], lax.DotAlgorithm):  # says which is the first
        return False
    return max(over_b) == b.ndim - 1 and max(over_a) < a.ndim - 1


def _swapped(op: Operation, a: Leaf) -> tuple[Operation, Operation]:
    """``b · a``, and the transposition that makes ``a · b`` of it."""
    over, batch = op.params["dimension_numbers"]
    (out,), precision = op.outputs, op.params["precision"]
    params = {
        **op.params,
        "dimension_numbers": (over[::-1], batch[::-1]),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    start, stop = len(batch[0]), a.ndim - len(over[0])  # of the rows of `a · b`
    order = (*range(start), *range(stop, len(out.shape)), *range(start, stop))
    shape = jax.ShapeDtypeStruct([out.shape[i] for i in order], out.dtype)
    back = {"permutation": tuple(np.argsort(order).tolist())}
    return (
        Operation(op.primitive, params, op.inputs[::-1], [shape]),
        Operation(primitives.transpose_p, back, [shape], op.outputs),
    )


def _contracted(op: Operation, a: Stack, b: Stack) -> Array:
    """``Σ_i a_i · b_i``: the directions are one more contracted dimension."""
    contracted, batch = op.params["dimension_numbers"]
    shifted = lambda dims, axis: tuple(d + (d >= axis) for d in dims)
    numbers = (
        tuple((x.axis, *shifted(dims, x.axis)) for dims, x in zip(contracted, (a, b))),
        tuple(shifted(dims, x.axis) for dims, x in zip(batch, (a, b))),
    )
    params = {**op.params, "dimension_numbers": numbers}
    return dataclasses.replace(op, params=params)(a.array, b.array)[0]


def _linear(
    op: Operation, ranks: tuple[int, int], product: Callable, place: int, other: Leaf
) -> Linear:
    """The product as a function of one of its factors."""
    over, batch = op.params["dimension_numbers"]
    if op.params.get("out_sharding") is not None:
        return Linear(product)
    shape = op.outputs[0].shape
    factors = lambda x, y=other: (x, y) if place == 0 else (y, x)
    kept = [d for d in range(ranks[place]) if d not in (*over[place], *batch[place])]
    start = len(batch[0]) if place == 0 else len(shape) - len(kept)
    targets = {d: i for i, d in enumerate(batch[place])}
    targets |= {d: start + i for i, d in enumerate(kept)}
    goes = tuple(targets.get(d) for d in range(ranks[place]))

    def terms(x: Array, dims: Sequence[int]) -> Array:
        return _terms(op, *factors(x), [over[place].index(d) for d in dims])

    if batch[0] or len(over[0]) != 1:
        return Linear(product, shape=shape, goes=goes, terms=terms)
    (dim,), (other_dim,) = over[place], over[1 - place]

    def columns(index: Indices) -> Array:
        rows = jnp.take(other, index, axis=other_dim, mode="clip")
        return jnp.moveaxis(rows, other_dim, 0).astype(op.outputs[0].dtype)

    def of_slice(start: int, size: int) -> Linear:
        part = lax.slice_in_dim(other, start, start + size, axis=other_dim)
        return _linear(op, ranks, lambda x: op(*factors(x, part))[0], place, part)

    of_vector = columns if ranks[place] == 1 else None
    return Linear(product, of_vector, dim, of_slice, shape, goes, terms)


@rule("ragged_dot_general")
def _ragged_dot(form: Form, op: Operation, args: Sequence[HyperDual]):
    return bilinear(form, op, args)
