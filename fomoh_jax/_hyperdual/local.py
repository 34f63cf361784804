"""Coefficients that are local: of each element only the few that are not zero.

Where an element of an intermediate depends on few directions, its tangents are kept in
*slots*, and a table that is known while tracing says which direction each slot of each
element belongs to. Operations that move elements move the table too. A sum over an axis
along which the table varies aligns the slots of what depends on the same directions, or
makes slots of the axis. So the terms of a sum are never dense, nor are the layers of a
network that sees each electron by itself.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.tree_util import register_dataclass
from jaxtyping import Array, ArrayLike, PyTree

from fomoh_jax._hyperdual.channels import (
    ZERO,
    Channel,
    Joint,
    Linear,
    Numbered,
    Product,
    Stack,
    Zero,
    vectorise,
)
from fomoh_jax._hyperdual.sums import total
from fomoh_jax._hyperdual.tables import (
    Table,
    agree,
    blocks_of,
    compact,
    meeting,
    places_along,
    rows_of,
    same_along,
    slots_apart,
    union,
)
from fomoh_jax._types import Leaf

T = TypeVar("T")

# Slots ``[m, *s]``, and which coefficient each is, or -1: then it is zero.
Part = tuple[Array, np.ndarray]

# Up to so many slots, products of slots that belong to the same direction cost less
# than to add these up first, and comparisons of all of them less than a scatter.
_FEW = 8

# A table of more entries takes gigabytes while tracing, and so do the coefficients.
_MOST = 2**27

# More parts than these become one: an elementwise operation is an equation for each.
_PARTS = 64


class NotLocalError(ValueError):
    """Too many coefficients are not zero."""


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
      most: with more slots the coefficients are stored; ``None`` if they never are for
        that.
    """

    is_stored = False

    arrays: tuple[Leaf, ...]
    tables: tuple[Table, ...] = dataclasses.field(metadata={"static": True})
    n: int = dataclasses.field(metadata={"static": True})
    most: int | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def of(cls, parts: Iterable[Part], n: int, most: int | None = None) -> Channel:
        """The channel of several parts, those that belong together added up."""
        merged: list[Part] = []
        for array, table in parts:
            if not np.any(table >= 0):
                continue
            for i, (other, own) in enumerate(merged):
                if agree(own, table):
                    merged[i] = other + array, np.maximum(own, table)
                    break
            else:
                merged.append((array, table))
        if not merged:
            return ZERO
        if len(merged) > _PARTS:
            merged = [_in_one(merged)]
        arrays, tables = zip(*merged)
        channel = cls(arrays, tuple(map(Table, tables)), n, most)
        is_small = most is None or channel.slots <= most
        return channel if is_small else channel.stored()

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

    def made_of(self, parts: Iterable[Part]) -> Channel:
        """A channel of other parts, with as many coefficients."""
        return Local.of(parts, self.n, self.most)

    def stored(self) -> Stack:
        dense = [_dense(array, table, self.n) for array, table in self.parts]
        return Stack(sum(dense[1:], dense[0]))

    def zero(self) -> Zero:
        return Zero(jax.ShapeDtypeStruct(self.shape, self.arrays[0].dtype))

    def terms(self, n: int) -> tuple[Array, np.ndarray]:
        del n
        array, table = _in_one(self.parts)
        (held,) = np.nonzero(table >= 0)
        return _rows(array, held), table[held]

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
            return self.made_of(self.parts + other.parts)
        return super().__add__(other)

    def mapped(self, function: Callable, axis: int) -> Channel:
        """The function of each slot, where all that it adds up belongs to the same.

        Slots of which that is not true are aligned first, if that makes few; or each
        term of the sum becomes a slot, if that makes hardly more.
        """
        if not isinstance(function, Linear) or function.goes is None:
            return super().mapped(function, axis)
        gone = _gone(function)
        mixed = [part for part in self.parts if not same_along(part[1], gone)]
        if mixed and function.terms is not None:
            target = union([table for _, table in mixed], gone)
            if _count_apart(mixed, gone) <= 2 * len(target):
                ready = [part for part in self.parts if same_along(part[1], gone)]
                outs = [_each(function, part) for part in ready]
                apart = [_term_by_term(function, part, gone) for part in mixed]
                return self.made_of(outs + apart)
        parts = self.gathered(gone)
        if parts is None:
            return super().mapped(function, axis)
        return self.made_of(_each(function, part) for part in parts)

    def met(self, other: Channel) -> Channel | None:
        pairs = self._meeting(other)
        if pairs is None:
            return None
        return self.made_of((x * y, table) for x, y, table in pairs)

    def met_in(self, product: Product, other: Channel) -> Channel | None:
        """Slots of either that belong to the same, in the function."""
        if not isinstance(other, Local) or product.linears is None:
            return None
        sides = []
        for x, function in zip((self, other), product.linears):
            side = x.gathered(_gone(function)) if function.goes is not None else None
            if side is None:
                return None
            sides.append([(a, t, _placed(t, function)) for a, t in side])
        # This says which results a slot belongs to, and that which elements.
        found, slots = [], 0
        for x, _, p in sides[0]:
            for y, _, q in sides[1]:
                if _is_much(p, q):
                    return None
                i, j, here = meeting(p, q)
                if not len(i):
                    continue
                out = product.pairwise(_rows(x, i), _rows(y, j))
                out = out if np.all(here) else jnp.where(here, out, 0)
                found.append((out, np.where(here, p[i], -1)))
                slots += len(i)
        return self.made_of(found) if slots <= self.n // 2 else None

    def summed(self, weights: ArrayLike | None = None) -> Stack:
        sums = []
        for array, table in self.parts:
            if weights is not None:
                places = np.maximum(compact(table), 0)
                array = _rows(jnp.asarray(weights, array.dtype), places) * array
            sums.append(Stack(total(array, 0)))
        return sum(sums[1:], sums[0])

    def arranged(self, axis: int) -> "Local":
        del axis  # slots lead
        return self

    def behind(self, first: PyTree) -> "Local":
        del first  # they are small
        return self

    def _meeting(self, other: Channel) -> list[tuple[Array, Array, np.ndarray]] | None:
        """Slots of both that belong to the same, side by side, and a table of them.

        None if there is no way to them that is better than to store all.
        """
        if not isinstance(other, Local):
            return None
        found, slots = [], 0
        for i, (x, p) in enumerate(self.parts):
            for j, (y, q) in enumerate(other.parts):
                if other is self and i > j:
                    continue
                if _is_much(p, q):
                    return None
                left, right, here = meeting(p, q)
                if not len(left):
                    continue
                u, v = _rows(x, left), _rows(y, right)
                u = u if np.all(here) else jnp.where(here, u, 0)
                u = 2 * u if other is self and i < j else u
                found.append((u, v, np.where(here, p[left], -1)))
                slots += len(left)
        return found if slots <= self.n else None

    def gathered(self, gone: Sequence[int]) -> list[Part] | None:
        """Parts whose slots belong to the same along some axes of the tables.

        None if that would be too many slots.
        """
        ready = [part for part in self.parts if same_along(part[1], gone)]
        mixed = [part for part in self.parts if not same_along(part[1], gone)]
        if not mixed:
            return ready
        target = union([table for _, table in mixed], gone)
        return [*ready, _aligned(mixed, target)] if len(target) <= self._limit else None

    @property
    def _limit(self) -> int:
        return self.n // 2 if self.most is None else self.most

    def is_apart_along(self, axis: int) -> bool:
        places = [places_along(table, axis + 1) for _, table in self.parts]
        numbers, _ = np.unique(np.concatenate(places), axis=0).T
        return len(np.unique(numbers)) == len(numbers)

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


def unit_vectors(leaves: Sequence[ArrayLike], most: int | None = None) -> list[Channel]:
    """A direction for each element of some arrays together, in one slot each.

    Args:
      leaves: the arrays.
      most: as of :class:`Local`.
    """
    offsets = np.cumsum([0, *map(jnp.size, leaves)])

    def directions(leaf: ArrayLike, offset: int) -> Channel:
        shape = 1, *jnp.shape(leaf)
        table = np.arange(offset, offset + jnp.size(leaf), dtype=np.int32)
        ones = lax.expand_dims(lax.full_like(leaf, 1), (0,))
        return Local.of([(ones, table.reshape(shape))], int(offsets[-1]), most)

    return list(map(directions, leaves, map(int, offsets)))


def _sums(xs: list[Channel], ys: list[Channel]) -> list[Channel]:
    return [x + y for x, y in zip(xs, ys)]


def _in_one(parts: Sequence[Part]) -> Part:
    """All the slots in one array."""
    if len(parts) == 1:
        return parts[0]
    arrays, tables = zip(*parts)
    return jnp.concatenate(arrays), np.concatenate(tables)


def _is_much(p: np.ndarray, q: np.ndarray) -> bool:
    """Whether to compare all the slots of two tables takes seconds."""
    return len(p) * len(q) * p[0].size > _MOST


def _rows(array: Array, places: np.ndarray) -> Array:
    """Elements along the leading axis, by known places."""
    if np.array_equal(places, np.arange(len(array))):
        return array
    return array.at[places].get(mode="promise_in_bounds")


def _each(function: Linear, part: Part) -> Part:
    """A linear function of each slot, of which all that it adds up belongs to one."""
    array, table = part
    out = vectorise(function.function, [0], 0)(array)
    return out, _placed(table, function)


def _gone(function: Linear) -> list[int]:
    """The axes of a table along which a function adds up."""
    return [i + 1 for i, place in enumerate(function.goes or ()) if place is None]


def _placed(table: np.ndarray, function: Linear) -> np.ndarray:
    """The table of the results, of one that is the same where the function adds up."""
    for axis in _gone(function):
        table = np.take(table, [0], axis)
    goes = function.goes or ()
    kept = [i for i, place in enumerate(goes) if place is not None]
    left = table.reshape(len(table), *(table.shape[i + 1] for i in kept))
    # The dimensions that are left come in the order of their places.
    order = sorted(range(len(kept)), key=lambda n: goes[kept[n]])
    left = left.transpose(0, *(n + 1 for n in order))
    taken = {goes[i] for i in kept}
    new = [i + 1 for i in range(len(function.shape)) if i not in taken]
    return np.broadcast_to(np.expand_dims(left, new), (len(table), *function.shape))


def _count_apart(parts: Sequence[Part], gone: Sequence[int]) -> int:
    """How many slots there would be if each term of a sum over axes were one."""
    tables = [table for _, table in parts]
    return sum(int(slots_apart(t, _varying(t, gone)).sum()) for t in tables)


def _varying(table: np.ndarray, axes: Sequence[int]) -> list[int]:
    return [axis for axis in axes if not same_along(table, [axis])]


def _term_by_term(function: Linear, part: Part, gone: Sequence[int]) -> Part:
    """The terms of a sum as slots, along the axes along which the table varies."""
    array, table = part
    axes = _varying(table, gone)
    held = slots_apart(table, axes)
    assert function.terms is not None
    terms = lambda x: function.terms(x, [axis - 1 for axis in axes])
    out = vectorise(terms, [0], 0)(array)
    # The axes first, and then what is left, with size 1 where it is added up.
    front = range(1, 1 + len(axes))
    moved = np.moveaxis(table, axes, front).reshape(
        -1, *(1 if i in axes else n for i, n in enumerate(table.shape) if i)
    )
    count = held.size
    flat = out.reshape(count, *function.shape)
    (rows,) = np.nonzero(held.reshape(-1))
    numbers = _placed(moved, function)[rows]
    # In the order of the coefficients, if they have one: then they need not be moved.
    first = numbers.reshape(len(numbers), -1).max(1)
    order = np.argsort(first, kind="stable")
    return _rows(flat, rows[order]), numbers[order]


def _aligned(parts: Sequence[Part], target: np.ndarray) -> Part:
    """The slots that belong to the same added up, at the places that a table says."""
    shape = np.broadcast_shapes(*(table.shape[1:] for _, table in parts))
    full = np.broadcast_to(target, (len(target), *shape))
    total: Array | int = 0
    for array, table in parts:
        if table.shape == full.shape and np.array_equal(table, full):
            total += array
            continue
        here = (target[:, None] == compact(table)) & (target[:, None] >= 0)
        total += jnp.sum(jnp.where(here, array, 0), 1)
    return jnp.asarray(total), full


def _dense(array: Array, table: np.ndarray, n: int) -> Array:
    """All the ``n`` coefficients, ``[n, *s]``."""
    numbers = rows_of(table)
    if numbers is not None:
        return _in_place(array, table, numbers, n)
    blocks = blocks_of(table)
    if blocks is not None and n % len(table) == 0:
        count = n // len(table)
        each = lax.broadcasted_iota(blocks.dtype, (count, *(1,) * (blocks.ndim + 1)), 0)
        chosen = jnp.where(each == blocks, array, 0)
        return chosen.reshape(n, *array.shape[1:])
    if len(table) <= _FEW:
        small = compact(table)
        each = lax.broadcasted_iota(small.dtype, (n, *(1,) * (table.ndim - 1)), 0)
        chosen = [jnp.where(each == t, x, 0) for x, t in zip(array, small)]
        return sum(chosen[1:], chosen[0])
    size = math.prod(table.shape[1:])
    places = table.astype(np.int64) * size
    places += np.arange(size).reshape(table.shape[1:])
    # Out of bounds, so that it is dropped.
    places = np.where(table >= 0, places, n * size).reshape(-1)
    flat = _summed_by_place(array.reshape(-1), places, n * size)
    return flat.reshape(n, *table.shape[1:])


def _in_place(array: Array, table: np.ndarray, numbers: np.ndarray, n: int) -> Array:
    """Slots that are, for all elements, of one coefficient each, where that belongs."""
    held = compact(table) >= 0
    if not np.all(held):
        array = jnp.where(held, array, 0)
    (some,) = np.nonzero(numbers >= 0)
    if len(some) < len(numbers):
        array, numbers = _rows(array, some), numbers[some]
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
