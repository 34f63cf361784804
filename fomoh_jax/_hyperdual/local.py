"""Coefficients that are local: of each element only the few that are not zero.

Where the terms of a sum see few of its variables each, an element of an intermediate
depends on few directions. Its tangents are kept in *slots*, and a table that is known
while tracing says which direction each slot of each element belongs to. Operations that
move elements move the table too; a sum over an axis whose elements depend on different
directions makes slots of the axis; so that the terms of a sum are never dense.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.tree_util import register_dataclass
from jaxtyping import Array, ArrayLike

from fomoh_jax._hyperdual.channels import (
    ZERO,
    Channel,
    Joint,
    Linear,
    Numbered,
    Stack,
    Zero,
    vectorise,
)
from fomoh_jax._types import Leaf


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Integers that are known while tracing; equal to a table of the same ones."""

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


T = TypeVar("T")

# Slots ``[m, *s]``, and which coefficient each is, or -1: then it is zero.
Part = tuple[Array, np.ndarray]

# Up to so many slots, products of slots that belong to the same direction cost less
# than to add these up first.
_FEW = 8

# A table of more entries takes gigabytes while tracing, and so do the coefficients.
_MOST = 2**27

# More parts than these become one: an elementwise operation is an equation for each.
_PARTS = 64


@dataclasses.dataclass(frozen=True)
class Alone:
    """A joint linear function as one of the operand at a place; the others are zero."""

    joint: Joint
    place: int

    def __call__(self, x: Array) -> list[Array]:
        return self.joint(*self.operands(x, lambda other: lax.full_like(other, 0)))

    @property
    def is_known(self) -> bool:
        """Whether the operands that do not vary are known while tracing."""
        joint = self.joint
        fixed = [x for i, x in enumerate(joint.operands) if i not in joint.places]
        return not any(isinstance(x, Tracer) for x in fixed)

    def operands(self, x: T, zero: Callable[[Leaf], T]) -> list[T]:
        """``x`` among zeros, each made of an operand that can vary."""
        joint = self.joint
        return [x if i == self.place else zero(joint.operands[i]) for i in joint.places]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Local(Channel):
    """Coefficients of shape ``s`` in slots, in one or more arrays of them.

    A coefficient is the sum of all slots that belong to it.

    Attributes:
      arrays: each of shape ``[m, *s]``.
      tables: for each of the arrays, to which coefficient each slot of each element
        belongs; -1 if to none, and it is zero.
      n: how many coefficients there are.
    """

    is_stored = False

    arrays: tuple[Leaf, ...]
    tables: tuple[Table, ...] = dataclasses.field(metadata={"static": True})
    n: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, parts: Iterable[Part], n: int) -> Channel:
        """The channel of several parts, those that belong together added up."""
        merged: list[Part] = []
        for array, table in parts:
            if not np.any(table >= 0):
                continue
            for i, (other, own) in enumerate(merged):
                if _agree(own, table):
                    merged[i] = other + array, np.maximum(own, table)
                    break
            else:
                merged.append((array, table))
        if not merged:
            return ZERO
        if len(merged) > _PARTS:
            merged = [_in_one(merged)]
        arrays, tables = zip(*merged)
        return cls(arrays, tuple(map(Table, tables)), n)

    @property
    def parts(self) -> list[Part]:
        tables = [table.numbers for table in self.tables]
        return list(zip(self.arrays, tables, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tables[0].numbers.shape[1:]

    @property
    def slots(self) -> int:
        """How many slots each element has."""
        return sum(len(table.numbers) for table in self.tables)

    def stored(self) -> Stack:
        array, table = _in_one(self.parts)
        size = math.prod(self.shape)
        places = table.astype(np.int64) * size
        places += np.arange(size).reshape(self.shape)
        held = table >= 0
        # Out of bounds, so that it is dropped.
        places = np.where(held, places, self.n * size).reshape(-1)
        flat = _summed_by_place(array.reshape(-1), places, self.n * size)
        return Stack(flat.reshape(self.n, *self.shape))

    def zero(self) -> Zero:
        return Zero(jax.ShapeDtypeStruct(self.shape, self.arrays[0].dtype))

    def terms(self, n: int) -> tuple[Array, np.ndarray]:
        del n
        array, table = _in_one(self.parts)
        (held,) = np.nonzero(table >= 0)
        if len(held) == len(table):
            return array, table
        return array.at[held].get(mode="promise_in_bounds"), table[held]

    def broadcast(self, shape: tuple[int, ...]) -> "Local":  # pyright: ignore[reportIncompatibleMethodOverride]
        def wide(part: Part) -> Part:
            array, table = part
            if not self.shape:  # scalars
                ones = (1,) * len(shape)
                table = table.reshape(-1, *ones)
                array = array.reshape(-1, *ones)
            full = (len(table), *shape)
            wider = lax.broadcast_in_dim(array, full, range(len(full)))
            return wider, np.broadcast_to(table, full)

        return self._with(map(wide, self.parts))

    def scaled(
        self, coefficient: ArrayLike, multiply: Callable = jnp.multiply
    ) -> "Local":
        if jnp.ndim(coefficient):
            coefficient = jnp.expand_dims(coefficient, 0)
        arrays = tuple(multiply(coefficient, array) for array in self.arrays)
        return dataclasses.replace(self, arrays=arrays)

    def __add__(self, other: object) -> Channel:
        if isinstance(other, Local):
            return Local.of(self.parts + other.parts, self.n)
        return super().__add__(other)

    def mapped(self, function: Callable, axis: int) -> Channel:
        """Where slots belong to the same along the dimension, its sum stays local."""
        if not isinstance(function, Linear) or function.over is None:
            return super().mapped(function, axis)
        over = function.over + 1
        firsts = [np.take(table, [0], over) for _, table in self.parts]
        if any(np.any(table != first) for (_, table), first in zip(self.parts, firsts)):
            return super().mapped(function, axis)

        def part(array: Array, first: np.ndarray) -> Part:
            out = vectorise(function.function, [0], 0)(array)
            left = np.squeeze(first, over)
            others = range(1, 1 + function.at) or range(left.ndim, out.ndim)
            return out, np.broadcast_to(np.expand_dims(left, [*others]), out.shape)

        return self._with(map(part, self.arrays, firsts))

    def squared(self, pairs: Numbered) -> Channel:
        parts = self._few().parts
        products = []
        for i, part in enumerate(parts):
            products.append(_square(part, pairs))
            products += [_product(part, other, pairs) for other in parts[i + 1 :]]
        return Local.of(products, pairs.q)

    def crossed(self, other: Channel, pairs: Numbered) -> Channel | None:
        if not isinstance(other, Local):
            return None
        parts, others = self._few().parts, other._few().parts
        products = [_product(a, b, pairs) for a in parts for b in others]
        return Local.of(products, pairs.q)

    def after(self, joint: Joint, channels: Sequence[Channel]) -> list[Channel] | None:
        if not all(x.is_zero or isinstance(x, Local) for x in channels):
            return None
        act = _WAYS.get(joint.name)
        if act is None:
            return None
        totals: list[Channel] | None = None
        for place, channel in zip(joint.places, channels):
            if not isinstance(channel, Local):
                continue
            results = act(channel, Alone(joint, place))
            if results is None:
                return None
            totals = results if totals is None else _sums(totals, results)
        return totals

    def is_summed_apart(self, terms: int, size: int) -> bool:
        held = sum(table.numbers.size for table in self.tables)
        return self.slots * terms * size <= max(held, self.n * size // 2)

    def _with(self, parts: Iterable[Part]) -> "Local":
        arrays, tables = zip(*parts)
        return dataclasses.replace(
            self, arrays=arrays, tables=tuple(map(Table, tables))
        )

    def _few(self) -> "Local":
        """The channel with no more slots than an element depends on, or with few."""
        if self.slots <= _FEW:
            return self
        array, table = _in_one(self.parts)
        order = np.argsort(table, 0, kind="stable")
        ranked = np.take_along_axis(table, order, 0)
        new = np.concatenate([ranked[:1] >= 0, ranked[1:] > ranked[:-1]])
        ranks = np.cumsum(new, 0) - 1
        slots = int(ranks.max()) + 1
        if slots == len(table):
            return self
        rank = np.empty_like(ranks)
        np.put_along_axis(rank, order, ranks, 0)
        shape, size = (slots, *self.shape), math.prod(self.shape)
        places = rank * size + np.arange(size).reshape(self.shape)
        places = np.where(table >= 0, places, slots * size).reshape(-1)
        flat = _summed_by_place(array.reshape(-1), places, slots * size)
        fewer = np.full(slots * size + 1, -1, table.dtype)
        fewer[places] = np.where(table >= 0, table, -1).reshape(-1)
        return self._with([(flat.reshape(shape), fewer[:-1].reshape(shape))])


# How linear operations act on local channels, by the name of their primitive.
Way = Callable[[Local, Alone], list[Channel] | None]
_WAYS: dict[str, Way] = {}
W = TypeVar("W", bound=Way)


def way(*names: str) -> Callable[[W], W]:
    """Register how operations act on the only operand that varies, given by name.

    It returns their results, or None if these are not local.
    """

    def register(function: W) -> W:
        _WAYS.update(dict.fromkeys(names, function))
        return function

    return register


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two tables say the same wherever both say anything."""
    if a.shape != b.shape:
        return False
    return a is b or bool(np.all((a == b) | (a < 0) | (b < 0)))


def _sums(xs: list[Channel], ys: list[Channel]) -> list[Channel]:
    return [x + y for x, y in zip(xs, ys)]


def _in_one(parts: Sequence[Part]) -> Part:
    """All the slots in one array."""
    if len(parts) == 1:
        return parts[0]
    arrays, tables = zip(*parts)
    return jnp.concatenate(arrays), np.concatenate(tables)


def _square(part: Part, pairs: Numbered) -> Part:
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


def _product(a: Part, b: Part, pairs: Numbered) -> Part:
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


def _summed_by_place(array: Array, places: np.ndarray, size: int) -> Array:
    """A flat array of sums, of the elements that go to the same place."""
    _check_count(size)
    zeros = jnp.zeros(size, array.dtype)
    return zeros.at[places.astype(np.int32)].add(array, mode="drop")


def _check_count(count: int) -> None:
    """Refuse coefficients that are too many to be kept.

    Raises:
      ValueError: saying how many they are.
    """
    if count > _MOST:
        raise ValueError(
            f"an intermediate result of fun has {count} derivatives that may differ "
            f"from zero, more than {_MOST}: its elements depend on too many variables "
            "each, as in jnp.var. Where the Hessian is no sparse matrix, take "
            "fomoh_jax.hessian; where it is, write fun as a sum of terms of few "
            "variables."
        )
