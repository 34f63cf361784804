"""Parts of a local channel: slots of each element, and what they belong to."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from fomoh_jax._hyperdual.descriptions import Linear, Numbered
from fomoh_jax._hyperdual.slot_tables import (
    blocks_of,
    compact,
    meeting,
    rows_of,
    same_along,
    slots_apart,
)
from fomoh_jax._hyperdual.vectorise import vectorise

# Slots ``[m, *s]``, and which coefficient each is, or -1: then it is zero.
Part = tuple[Array, np.ndarray]

# Comparisons of up to so many slots cost less than a scatter.
_FEW = 8

# A table of more entries takes gigabytes while tracing, and so do the coefficients.
_MOST = 2**27


class NotLocalError(ValueError):
    """Too many coefficients are not zero."""


def in_one(parts: Sequence[Part]) -> Part:
    """All the slots in one array."""
    if len(parts) == 1:
        return parts[0]
    arrays, tables = zip(*parts)
    return jnp.concatenate(arrays), np.concatenate(tables)


def meetings(
    pairwise: Callable[[Array, Array], Array],
    parts: Sequence[Part],
    others: Sequence[Part],
    most: int,
    *,
    symmetric: bool = False,
) -> list[Part] | None:
    """Products of all the slots of two sides that belong to the same coefficient.

    Args:
      pairwise: the products of two stacks, ``[r, …]``.
      parts, others: the sides. Their tables are of the elements of the products.
      most: with more slots the result is ``None``, as it is where to find them would
        take seconds.
      symmetric: whether both sides are the same.
    """
    if symmetric:
        pairs = list(itertools.combinations_with_replacement(parts, 2))
    else:
        pairs = list(itertools.product(parts, others))
    if any(len(p) * len(q) * p[0].size > _MOST for (_, p), (_, q) in pairs):
        return None
    met = [meeting(p, q) for (_, p), (_, q) in pairs]
    if sum(len(left) for left, _, _ in met) > most:
        return None
    found = []
    for (a, b), (left, right, here) in zip(pairs, met):
        if not len(left):
            continue
        (x, table), (y, _) = a, b
        out = pairwise(rows_at(x, left), rows_at(y, right))
        out = out if np.all(here) else jnp.where(here, out, 0)
        out = 2 * out if symmetric and a is not b else out
        found.append((out, np.where(here, table[left], -1)))
    return found


def rows_at(array: Array, places: np.ndarray) -> Array:
    """Elements along the leading axis, by known places."""
    if np.array_equal(places, np.arange(len(array))):
        return array
    return array.at[places].get(mode="promise_in_bounds")


def each_slot(function: Linear, part: Part) -> Part:
    """A linear function of each slot, of which all that it adds up belongs to one."""
    array, table = part
    out = vectorise(function.function, [0], 0)(array)
    return out, placed(table, function)


def summed_axes(function: Linear) -> list[int]:
    """The axes of a table along which a function adds up."""
    return [i + 1 for i, place in enumerate(function.goes or ()) if place is None]


def placed(table: np.ndarray, function: Linear) -> np.ndarray:
    """The table of the results, of one that is the same where the function adds up."""
    for axis in summed_axes(function):
        table = np.take(table, [0], axis)
    goes = function.goes or ()
    targets = {i: place for i, place in enumerate(goes) if place is not None}
    kept = list(targets)
    left = table.reshape(len(table), *(table.shape[i + 1] for i in kept))
    # The dimensions that are left come in the order of their places.
    order = np.argsort(list(targets.values()))
    left = left.transpose(0, *(int(n) + 1 for n in order))
    new = (i + 1 for i in range(len(function.shape)) if i not in targets.values())
    left = np.expand_dims(left, tuple(new))
    return np.broadcast_to(left, (len(table), *function.shape))


def count_apart(parts: Sequence[Part], gone: Sequence[int]) -> int:
    """The number of slots if each term of a sum over axes were one."""
    tables = [table for _, table in parts]
    return sum(int(slots_apart(t, _varying(t, gone)).sum()) for t in tables)


def _varying(table: np.ndarray, axes: Sequence[int]) -> list[int]:
    return [axis for axis in axes if not same_along(table, [axis])]


def term_by_term(function: Linear, part: Part, gone: Sequence[int]) -> Part:
    """The terms of a sum as slots, along the axes along which the table varies."""
    array, table = part
    axes = _varying(table, gone)
    held = slots_apart(table, axes)
    of_function, dims = function.terms, [axis - 1 for axis in axes]
    assert of_function is not None
    out = vectorise(lambda x: of_function(x, dims), [0], 0)(array)
    # The axes first, and then what is left, with size 1 where it is added up.
    front = range(1, 1 + len(axes))
    moved = np.moveaxis(table, axes, front).reshape(
        -1, *(1 if i in axes else n for i, n in enumerate(table.shape) if i)
    )
    count = held.size
    flat = out.reshape(count, *function.shape)
    (rows,) = np.nonzero(held.reshape(-1))
    numbers = placed(moved, function)[rows]
    # Slots in the order of their coefficients, if they have one, need not be moved.
    first = numbers.reshape(len(numbers), -1).max(1)
    order = np.argsort(first, kind="stable")
    return rows_at(flat, rows[order]), numbers[order]


def aligned(parts: Sequence[Part], target: np.ndarray) -> Part:
    """The slots that belong to the same added up, at the places that a table says."""
    shape = np.broadcast_shapes(*(table.shape[1:] for _, table in parts))
    full = np.broadcast_to(target, (len(target), *shape))
    total: Array | int = 0
    for array, table in parts:
        if table.shape == full.shape and np.array_equal(table, full):
            total += array
            continue
        here = (target[:, None] == compact(table)) & (target[:, None] >= 0)
        total += jnp.sum(jnp.where(here, array[None], 0), 1)
    return jnp.asarray(total), full


def dense(array: Array, table: np.ndarray, n: int) -> Array:
    """All the ``n`` coefficients, ``[n, *s]``."""
    numbers = rows_of(table)
    if numbers is not None:
        return _in_place(array, table, numbers, n)
    blocks = blocks_of(table)
    if blocks is not None and n % len(table) == 0:
        count, blocks = n // len(table), blocks.astype(np.int32)
        each = lax.broadcasted_iota(blocks.dtype, (count, *(1,) * (blocks.ndim + 1)), 0)
        chosen = jnp.where(each == blocks[None, None], array[None], 0)
        return chosen.reshape(n, *array.shape[1:])
    if len(table) <= _FEW:
        small = compact(table).astype(np.int32)[:, None]
        each = lax.broadcasted_iota(small.dtype, (n, *(1,) * (table.ndim - 1)), 0)
        chosen = [jnp.where(each == t, x[None], 0) for x, t in zip(array, small)]
        return sum(chosen[1:], chosen[0])
    size = math.prod(table.shape[1:])
    places = table.astype(np.int64) * size
    places += np.arange(size).reshape(table.shape[1:])
    # Out of bounds, so that it is dropped.
    places = np.where(table >= 0, places, n * size).reshape(-1)
    flat = summed_by_place(array.reshape(-1), places, n * size)
    return flat.reshape(n, *table.shape[1:])


def _in_place(array: Array, table: np.ndarray, numbers: np.ndarray, n: int) -> Array:
    """Slots that are, for all elements, of one coefficient each, where that belongs."""
    held = compact(table) >= 0
    if not np.all(held):
        array = jnp.where(held, array, 0)
    (some,) = np.nonzero(numbers >= 0)
    if len(some) < len(numbers):
        array, numbers = rows_at(array, some), numbers[some]
    if np.array_equal(numbers, np.arange(n)):
        return array
    distinct = len(np.unique(numbers)) == len(numbers)
    if distinct and np.all(np.diff(numbers) == 1):
        config = [(int(numbers[0]), n - 1 - int(numbers[-1]), 0)]
        config += [(0, 0, 0)] * (array.ndim - 1)
        return lax.pad(array, lax.full_like(array, 0, shape=()), config)
    if distinct:
        source = np.full(n, len(numbers))
        source[numbers] = np.arange(len(numbers))
        return array.at[source].get(mode="fill", fill_value=0)
    return jax.ops.segment_sum(array, numbers, n)


def square(part: Part, pairs: Numbered) -> Part:
    """The products of slots with themselves and, once, with one another."""
    array, table = part
    _check_count(len(table) ** 2 // 2 * math.prod(table.shape[1:]))
    if len(table) == 1:
        return array * array, _pairs(table, table, pairs)
    i, j = np.triu_indices(len(table))
    rows = lambda index: array.at[index].get(mode="promise_in_bounds")
    twice = (table[i] == table[j]) & (i != j).reshape(-1, *(1,) * (table.ndim - 1))
    return (
        _doubled(rows(i) * rows(j), twice & (table[i] >= 0)),
        _pairs(table[i], table[j], pairs),
    )


def product(a: Part, b: Part, pairs: Numbered) -> Part:
    """``a_k b_l`` of all slots; twice of those of one direction."""
    (x, p), (y, q) = a, b
    outer = (len(p) * len(q), *p.shape[1:])
    _check_count(math.prod(outer))
    p, q = (np.broadcast_to(t, (len(p), len(q), *p.shape[1:])) for t in (p[:, None], q))
    p, q = p.reshape(outer), q.reshape(outer)
    product = (x[:, None] * y[None]).reshape(outer)
    return _doubled(product, (p == q) & (p >= 0)), _pairs(p, q, pairs)


def _doubled(array: Array, twice: np.ndarray) -> Array:
    """The array, times two where that is said."""
    if not np.any(twice):
        return array
    if np.all(twice):
        return 2 * array
    return jnp.where(twice, 2 * array, array)


def _pairs(p: np.ndarray, q: np.ndarray, pairs: Numbered) -> np.ndarray:
    """The numbers of pairs of directions, -1 where one of them is none."""
    low, high = np.minimum(p, q), np.maximum(p, q)
    return np.where(low >= 0, pairs.number(low, high), -1)


def summed_by_place(array: Array, places: np.ndarray, size: int) -> Array:
    """A flat array of sums, of the elements that go to the same place."""
    _check_count(size)
    zeros = jnp.zeros(size, array.dtype)
    return zeros.at[places.astype(np.int32)].add(array, mode="drop")


def _check_count(count: int) -> None:
    """Refuse coefficients that are too many to be kept.

    Raises:
      NotLocalError: saying how many they are.
    """
    if count > _MOST:
        raise NotLocalError(
            f"an intermediate result of fun has {count} derivatives that may differ "
            f"from zero, more than {_MOST}: its elements depend on too many variables "
            "each, as in jnp.var. Where the Hessian is no sparse matrix, take "
            "fomoh_jax.hessian; where it is, write fun as a sum of terms of few "
            "variables."
        )
