"""Directions along single elements that are not known while tracing.

A random coordinate of a hundred thousand is a direction with one element that is not
zero. Stored, ``n`` of them would be ``n`` arrays of the size of the argument, and a
product with a matrix would multiply them all; known to be so, they are ``n`` of its
rows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Int

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.descriptions import Alone, Linear
from fomoh_jax._hyperdual.linear_operations import way
from fomoh_jax._hyperdual.trees import register_tree


@register_tree
@dataclasses.dataclass(frozen=True, eq=False)
class OneHot(Channel):
    """``v_i`` is ``entries[i]`` at place ``index[i]`` of a flat array, and zero else.

    Elementwise operations, and those that move elements or add them all up, leave it
    what it is; any other stores it.

    Attributes:
      entries: shape ``[n]``.
      index: integers, shape ``[n]``: places in an array as if it were flat.
      shape: of the array.
    """

    is_stored = False

    entries: Inexact[Array, " n"]
    index: Int[Array, " n"]
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def stored(self) -> Stack:
        places = jnp.arange(math.prod(self.shape), dtype=self.index.dtype)
        hot = self.index[:, None] == places[None]
        dense = jnp.where(hot, self.entries[:, None], 0)
        return Stack(dense.reshape(len(self.entries), *self.shape))

    def scaled(
        self, coefficient: ArrayLike, multiply: Callable = jnp.multiply
    ) -> "OneHot":
        if jnp.ndim(coefficient) and jnp.size(coefficient):
            flat = jnp.asarray(coefficient).reshape(-1)
            coefficient = flat.at[self.index].get(mode="promise_in_bounds")
        return self._with(multiply(coefficient, self.entries))

    def __add__(self, other: object) -> Channel:
        if isinstance(other, OneHot) and other.index is self.index:
            return self._with(self.entries + other.entries)
        return super().__add__(other)

    def met(self, other: Channel) -> "OneHot | None":
        if not isinstance(other, OneHot) or other.index is not self.index:
            return None
        return self._with(self.entries * other.entries)

    def summed(self, weights: ArrayLike | None = None) -> Stack:
        entries = self.entries
        if weights is not None:
            entries = jnp.asarray(weights, entries.dtype) * entries
        zeros = jnp.zeros(math.prod(self.shape), entries.dtype)
        total = zeros.at[self.index].add(entries, mode="promise_in_bounds")
        return Stack(total.reshape(1, *self.shape))

    def mapped(self, function: Callable, axis: int) -> Channel:
        columns = function.columns if isinstance(function, Linear) else None
        if columns is None:
            return super().mapped(function, axis)
        arrays = columns(self.index)
        entries = jnp.expand_dims(self.entries, range(1, arrays.ndim))
        return Stack(entries * arrays).moved(axis)

    def _with(self, entries: Array) -> "OneHot":
        return dataclasses.replace(self, entries=entries)

    def _in_shape(self, shape: Sequence[int]) -> "list[OneHot] | None":
        """The channel of an array of another shape, if that has as many elements."""
        if math.prod(shape) != math.prod(self.shape):
            return None
        return [dataclasses.replace(self, shape=tuple(shape))]


@way(OneHot, "neg")
def _negated(x: OneHot, operation: Alone) -> list[OneHot]:
    del operation
    return [x._with(-1 * x.entries)]


@way(OneHot, "convert_element_type")
def _converted(x: OneHot, operation: Alone) -> list[OneHot]:
    return [x._with(x.entries.astype(operation.joint.params["new_dtype"]))]


@way(OneHot, "reshape")
def _reshaped(x: OneHot, operation: Alone) -> list[OneHot] | None:
    params = operation.joint.params
    in_order = params["dimensions"] is None
    return x._in_shape(params["new_sizes"]) if in_order else None


@way(OneHot, "squeeze")
def _squeezed(x: OneHot, operation: Alone) -> list[OneHot] | None:
    gone = operation.joint.params["dimensions"]
    return x._in_shape([n for i, n in enumerate(x.shape) if i not in gone])


@way(OneHot, "broadcast_in_dim")
def _expanded(x: OneHot, operation: Alone) -> list[OneHot] | None:
    """A ``broadcast_in_dim`` that adds dimensions of size one alone."""
    return x._in_shape(operation.joint.params["shape"])


@way(OneHot, "reduce_sum")
def _totalled(x: OneHot, operation: Alone) -> list[Stack] | None:
    is_of_all = len(operation.joint.params["axes"]) == len(x.shape)
    return [Stack(x.entries)] if is_of_all else None


@way(OneHot, "concatenate")
def _concatenated(x: OneHot, operation: Alone) -> list[OneHot] | None:
    if len(x.shape) != 1:
        return None
    lengths = list(map(jnp.size, operation.joint.operands))
    index = x.index + sum(lengths[: operation.place])
    return [OneHot(x.entries, index, (sum(lengths),))]


@way(OneHot, "slice")
def _sliced(x: OneHot, operation: Alone) -> list[OneHot] | None:
    params = operation.joint.params
    if len(x.shape) != 1 or params["strides"] not in (None, (1,)):
        return None
    (start,), (limit,) = params["start_indices"], params["limit_indices"]
    if start == limit:
        return None
    index = x.index - start
    inside = (index >= 0) & (index < limit - start)
    entries = jnp.where(inside, x.entries, 0)
    return [OneHot(entries, jnp.where(inside, index, 0), (limit - start,))]
