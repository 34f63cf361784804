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

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree

from fomoh_jax._hyperdual.channels import ZERO, Alignment, Channel, Stack, Zero
from fomoh_jax._hyperdual.descriptions import Linear, Numbered, Product
from fomoh_jax._hyperdual.parts import (
    Part,
    aligned,
    count_apart,
    dense,
    each_slot,
    in_one,
    meetings,
    placed,
    product,
    rows_at,
    square,
    summed_axes,
    summed_by_place,
    term_by_term,
)
from fomoh_jax._hyperdual.slot_tables import (
    Table,
    agree,
    compact,
    places_along,
    same_along,
    union,
)
from fomoh_jax._hyperdual.sums import total
from fomoh_jax._hyperdual.trees import register_tree
from fomoh_jax._types import Leaf

# Up to this many slots, products of slots that belong to the same direction cost less
# than to add these up first.
_FEW = 8

# More parts than these become one: an elementwise operation is an equation for each.
_PARTS = 64


@register_tree
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
    is_closed_under_sums = True

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
            merged = [in_one(merged)]
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
        """The number of slots of each element."""
        return sum(len(table.numbers) for table in self.tables)

    def made_of(self, parts: Iterable[Part]) -> Channel:
        """A channel of other parts, with as many coefficients."""
        return Local.of(parts, self.n, self.most)

    def stored(self) -> Stack:
        arrays = [dense(array, table, self.n) for array, table in self.parts]
        return Stack(sum(arrays[1:], arrays[0]))

    def zero(self) -> Zero:
        return Zero(jax.ShapeDtypeStruct(self.shape, self.arrays[0].dtype))

    def terms(self, n: int) -> tuple[Array, np.ndarray]:
        del n
        array, table = in_one(self.parts)
        (held,) = np.nonzero(table >= 0)
        return rows_at(array, held), table[held]

    def broadcast(self, shape: tuple[int, ...]) -> "Local":
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
        gone = summed_axes(function)
        mixed = [part for part in self.parts if not same_along(part[1], gone)]
        if mixed and function.terms is not None:
            target = union([table for _, table in mixed], gone)
            if count_apart(mixed, gone) <= 2 * len(target):
                ready = [part for part in self.parts if same_along(part[1], gone)]
                outs = [each_slot(function, part) for part in ready]
                apart = [term_by_term(function, part, gone) for part in mixed]
                return self.made_of(outs + apart)
        parts = self.gathered(gone)
        if parts is None:
            return super().mapped(function, axis)
        return self.made_of(each_slot(function, part) for part in parts)

    def met(self, other: Channel) -> Channel | None:
        if not isinstance(other, Local):
            return None
        parts, others = self.parts, other.parts
        same = other is self
        found = meetings(jnp.multiply, parts, others, self.n, symmetric=same)
        return None if found is None else self.made_of(found)

    def met_in(self, product: Product, other: Channel) -> Channel | None:
        if not isinstance(other, Local) or product.linears is None:
            return None
        sides = []
        for x, function in zip((self, other), product.linears):
            side = x.gathered(summed_axes(function)) if function.goes else None
            if side is None:
                return None
            # All that a slot of a result is made of belongs to the same coefficient.
            sides.append([(array, placed(table, function)) for array, table in side])
        left, right = sides
        found = meetings(product.pairwise, left, right, self.n // 2)
        return None if found is None else self.made_of(found)

    def summed(self, weights: ArrayLike | None = None) -> Stack:
        sums = []
        for array, table in self.parts:
            if weights is not None:
                places = np.maximum(compact(table), 0)
                array = rows_at(jnp.asarray(weights, array.dtype), places) * array
            sums.append(Stack(total(array, 0)))
        return sum(sums[1:], sums[0])

    def arranged(self, axis: int) -> "Local":
        del axis  # slots lead
        return self

    def alignment(self, alternatives: Sequence[Channel]) -> Alignment:
        """If all are local, each gets the slots that any of them has."""
        varying = [channel for channel in alternatives if not channel.is_zero]
        local = [channel for channel in varying if isinstance(channel, Local)]
        if len(local) < len(varying):
            return super().alignment(alternatives)
        # What is missing is zero, and sharded like what another has in its place.
        like = {t: x for each in local for t, x in zip(each.tables, each.arrays)}

        def filled(channel: Channel, n: int) -> Local:
            del n
            is_local = isinstance(channel, Local)
            held = dict(zip(channel.tables, channel.arrays)) if is_local else {}
            missing = {t: jnp.zeros_like(x) for t, x in like.items() if t not in held}
            arrays = tuple((held | missing)[t] for t in like)
            return Local(arrays, tuple(like), self.n, self.most)

        return filled

    def within(self) -> Channel:
        return self.made_of(self.parts)

    def behind(self, first: PyTree) -> "Local":
        del first  # they are small
        return self

    def gathered(self, gone: Sequence[int]) -> list[Part] | None:
        """Parts whose slots belong to the same along some axes of the tables.

        None if that would be too many slots.
        """
        ready = [part for part in self.parts if same_along(part[1], gone)]
        mixed = [part for part in self.parts if not same_along(part[1], gone)]
        if not mixed:
            return ready
        target = union([table for _, table in mixed], gone)
        return [*ready, aligned(mixed, target)] if len(target) <= self._limit else None

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
            products.append(square(part, pairs))
            products += [product(part, other, pairs) for other in parts[i + 1 :]]
        return Local.of(products, pairs.q)

    def crossed(self, other: Channel, pairs: Numbered) -> Channel | None:
        if not isinstance(other, Local):
            return None
        parts, others = self._few().parts, other._few().parts
        products = [product(a, b, pairs) for a in parts for b in others]
        return Local.of(products, pairs.q)

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
        array, table = in_one(self.parts)
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
        flat = summed_by_place(array.reshape(-1), places, slots * size)
        fewer = np.full(slots * size + 1, -1, table.dtype)
        fewer[places] = np.where(table >= 0, table, -1).reshape(-1)
        return self._with([(flat.reshape(shape), fewer[:-1].reshape(shape))])


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
