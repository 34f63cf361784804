"""Tables, known while tracing: to which coefficient a slot of an element belongs.

The table of ``m`` slots of an array of shape ``s`` holds integers ``[m, *s]``: the
numbers of coefficients, and -1 where a slot belongs to none.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table that is part of a tree; equal to another one of the same numbers."""

    numbers: np.ndarray

    @functools.cached_property
    def _key(self) -> tuple:
        content = np.ascontiguousarray(self.numbers)
        return (
            content.shape,
            content.dtype.str,
            hashlib.sha256(content.tobytes()).digest(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two tables say the same wherever both say anything."""
    if a.shape != b.shape:
        return False
    return a is b or bool(np.all((a == b) | (a < 0) | (b < 0)))


def same_along(table: np.ndarray, axes: Sequence[int]) -> bool:
    """Whether the table is the same along some of its axes."""
    return all(
        table.strides[axis] == 0 or bool(np.all(table == np.take(table, [0], axis)))
        for axis in axes
        if table.shape[axis] > 1
    )


def compact(table: np.ndarray) -> np.ndarray:
    """The table with size 1 along the axes of elements where it is the same."""
    for axis in range(1, table.ndim):
        if table.size and same_along(table, [axis]):
            table = np.take(table, [0], axis)
    return table


def rows_of(table: np.ndarray) -> np.ndarray | None:
    """The number of each slot, if it is the same for all elements that have one."""
    flat = compact(table).reshape(len(table), -1)
    most = flat.max(1, initial=-1)
    return most if np.all((flat == most[:, None]) | (flat < 0)) else None


def blocks_of(table: np.ndarray) -> np.ndarray | None:
    """``b`` of a table ``m b + [0 … m - 1]`` of ``m`` slots, or None if it is not one.

    Its shape is that of an element of the table, made compact; -1 where there is none.
    """
    table, count = compact(table), len(table)
    held = table >= 0
    blocks = np.where(held[0], table[0] // count, -1)
    slots = np.arange(count).reshape(-1, *(1,) * blocks.ndim)
    same = np.where(held, table, -1) == np.where(blocks < 0, -1, blocks * count + slots)
    return blocks if np.all(same) else None


def is_ascending(table: np.ndarray) -> bool:
    """Whether each slot is of one number for all elements, and these ascend."""
    numbers = rows_of(table)
    return numbers is not None and bool(np.all(np.diff(numbers) > 0))


def meeting(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slots of two tables that belong to the same coefficient, for any element.

    Returns:
      Slots of the first, those of the second that they meet, and for which elements
      they do: along a leading axis, with size 1 where that is the same for all.
    """
    equal = (compact(a)[:, None] == compact(b)) & (compact(b) >= 0)
    i, j = np.nonzero(np.any(equal, tuple(range(2, equal.ndim))))
    return i, j, equal[i, j]


def places_along(table: np.ndarray, axis: int) -> np.ndarray:
    """The pairs of a number and a place where it occurs along an axis, each once."""
    moved = np.moveaxis(table, axis, -1)
    pairs = np.broadcast_to(np.arange(moved.shape[-1]), moved.shape)
    held = moved >= 0
    return np.unique(np.stack([moved[held], pairs[held]], 1), axis=0)


def slots_apart(table: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """``[m, *sizes]``: which slots belong to anything, at places along some axes."""
    others = tuple(i for i in range(1, table.ndim) if i not in axes)
    return np.any(table >= 0, others)


def union(tables: Sequence[np.ndarray], axes: Sequence[int]) -> np.ndarray:
    """All that the tables say along some axes, each number once.

    Returns:
      A table with size 1 along these axes, and along those where all tables are the
      same. Numbers come in the order in which they are met first.
    """
    tables = [compact(table) for table in tables]
    others = [axis for axis in range(1, tables[0].ndim) if axis not in axes]
    sizes = np.broadcast_shapes(*([t.shape[i] for i in others] for t in tables))

    def met(table: np.ndarray) -> np.ndarray:
        """``[…, *sizes]``, along the axes one after the other."""
        moved = table.transpose(*axes, 0, *others)
        shape = [table.shape[i] for i in others]
        flat = moved.reshape(-1, *shape)
        return np.broadcast_to(flat, (len(flat), *sizes))

    numbers = np.concatenate([met(table) for table in tables])
    order = np.argsort(numbers, 0, kind="stable")
    ascending = np.take_along_axis(numbers, order, 0)
    new = ascending >= 0
    new[1:] &= ascending[1:] != ascending[:-1]
    first = np.zeros_like(new)
    np.put_along_axis(first, order, new, 0)
    ranks = np.cumsum(first, 0) - 1
    count = int(ranks.max(initial=-1)) + 1
    out = np.full((count, *sizes), -1, numbers.dtype)
    place = np.nonzero(first)
    out[(ranks[place], *place[1:])] = numbers[place]
    shape = [1] * tables[0].ndim
    for axis, size in zip(others, sizes):
        shape[axis] = size
    return out.reshape(count, *shape[1:])
