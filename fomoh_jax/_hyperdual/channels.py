"""Channels: the coefficients of one order of a hyper-dual number.

A number has two, its tangents and its second-order coefficients. A channel is zero, or
a stack of arrays, or something else that becomes a stack where one is needed; which of
these is known while tracing. Rules do not ask. They are written with the operations
below, and the channels know by themselves how to carry them out:

- ``a + b``, ``a - b`` and ``c * a``, elementwise;
- ``mapped``, a linear function of one operand, and
  :func:`~fomoh_jax._hyperdual.linear_operations.apply_linear`, one of several operands;
- ``moved`` and ``broadcast``, which change where the arrays are and not what they hold;
- ``whole`` and ``coefficient``, which read them.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ref import AbstractRef
from jax.sharding import PartitionSpec
from jax.tree_util import register_pytree_node_class
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Inexact, PyTree

from fomoh_jax._hyperdual.descriptions import Indices, Numbered, Product
from fomoh_jax._hyperdual.mesh_axes import concatenated, explicit_sharding
from fomoh_jax._hyperdual.sums import total
from fomoh_jax._hyperdual.trees import register_tree
from fomoh_jax._hyperdual.vectorise import vectorise
from fomoh_jax._types import Leaf

# ``align(channel, n)`` of a channel of ``n`` coefficients.
Alignment = Callable[["Channel", int], "Channel"]


class Channel(abc.ABC):
    """Coefficients of one order: arrays of one shape ``s`` and one dtype.

    Attributes:
      is_zero: whether all of them are known to be zero.
      is_stored: whether nothing of them is left to be made.
      is_closed_under_sums: whether the sum of two channels of the class is one, too.
      axis: where the axis that stacks them is, or would be.
    """

    is_zero: ClassVar[bool] = False
    is_stored: ClassVar[bool] = True
    is_closed_under_sums: ClassVar[bool] = False
    axis: int = 0
    # Makes NumPy arrays leave a product with a channel to the channel.
    __array_ufunc__ = None

    @abc.abstractmethod
    def stored(self) -> "Zero | Stack":
        """The channel with nothing left to be made."""

    def stacked(self) -> "Stack":
        """The channel with nothing left to be made, as a stack, if it is not zero."""
        return self.stored().stacked()

    def not_before(self, array: Array | None) -> "Channel":
        """The channel, which if deferred is not made before ``array`` is computed."""
        del array
        return self

    @property
    def computed(self) -> Array | None:
        """An array that is known once the channel is; None if there is none."""
        return None

    def moved(self, axis: int) -> "Zero | Stack":
        """The channel with its stacking axis at ``axis``."""
        return self.stored().moved(axis)

    def declared(self, axis: int) -> "Zero | Stack":
        """The channel with its stacking axis said, and not made, to be at ``axis``."""
        return self.stored().declared(axis)

    def broadcast(self, shape: tuple[int, ...]) -> "Channel":
        """Each coefficient, a scalar or of as many dimensions, brought to a shape."""
        return self.stored().broadcast(shape)

    def rotated(self, start: Array, n: int) -> "Channel":
        """The ``n`` coefficients numbered from ``start`` on, modulo ``n``."""
        return self.stored().rotated(start, n)

    def scaled(
        self, coefficient: ArrayLike, multiply: Callable = jnp.multiply
    ) -> "Channel":
        """``coefficient * x`` for each ``x`` of the channel, elementwise."""
        return self.stored().scaled(coefficient, multiply)

    def mapped(self, function: Callable, axis: int) -> "Channel":
        """A linear function of one array, of each; the results stacked at ``axis``."""
        return self.stored().mapped(function, axis)

    def met(self, other: "Channel") -> "Channel | None":
        """``a_i b_i``, elementwise, if there is a better way than to store them."""
        del other
        return None

    def met_in(self, product: "Product", other: "Channel") -> "Channel | None":
        """``B(a_i, b_i)`` of a bilinear function, if there is a better way to them."""
        del product, other
        return None

    def crossed_in(
        self,
        product: "Product",
        place: int,
        other: "Channel",
        pairs: tuple[Indices, Indices],
        axis: int,
    ) -> "Channel | None":
        """``B(a_i, b_j) + B(a_j, b_i)`` for some pairs, if there is a better way.

        ``place`` says which operand of the bilinear function this channel is, ``axis``
        where the results are stacked.
        """
        del product, place, other, pairs, axis
        return None

    def summed(self, weights: ArrayLike | None = None) -> "Zero | Stack":
        """``Σ_i weights_i x_i``, as a stack of one; by default all weights are one."""
        array = self.stored().moved(0).operand()
        if weights is None:
            return Stack(total(array, 0))
        return Stack(jnp.tensordot(jnp.asarray(weights, array.dtype), array, 1)[None])

    def is_apart_along(self, axis: int) -> bool:
        """Whether it is known that no coefficient has two elements along a dimension.

        Then it is zero but at one place along it.
        """
        del axis
        return False

    def squared(self, pairs: "Numbered") -> "Channel | None":
        """``a_i a_j`` for ``i <= j``, if the channel knows a better way to them."""
        del pairs
        return None

    def crossed(self, other: "Channel", pairs: "Numbered") -> "Channel | None":
        """``a_i b_j + a_j b_i`` for ``i <= j``, if there is a better way to them."""
        del other, pairs
        return None

    def is_summed_apart(self, terms: int, size: int) -> bool:
        """Whether sums of so many terms, in ``size`` places, are best left as terms.

        A zero has no objection.
        """
        del terms, size
        return self.is_zero

    def terms(self, n: int) -> tuple[Array, np.ndarray]:
        """Coefficients of one element, and which of the ``n`` each of them is.

        The same one may come more than once, and is then their sum.
        """
        return self.whole(n).array, np.arange(n)

    def arranged(self, axis: int) -> "Channel":
        """The channel with its stacking axis, if it is to have one, at ``axis``."""
        return self.moved(axis)

    def within(self) -> "Channel":
        """The channel, stored if it has more of whatever it is made of than it may."""
        return self

    def behind(self, first: PyTree) -> "Channel":
        """The channel, not to be looked at before ``first`` is there.

        What is made of the tangents of a parameter alone, a transposed copy for a
        matrix product above all, could be made at any time, and the cross products of
        tangents before there are seconds to add them to. A compiler that makes them for
        every layer at the start keeps them for every layer, and memory grows with
        depth. (XLA heeds this on the CPU from jax 0.12 on.) One direction alone is used
        as it is; to wait for it would keep half as much again.
        """
        return self.stored().behind(first)

    def alignment(self, alternatives: Sequence["Channel"]) -> Alignment:
        """A function that brings each of several channels to the same tree structure.

        Args:
          alternatives: the channels, one for each branch; they may be abstract. This
            channel is the first of them that is not zero.
        """
        del alternatives
        axis = self.axis
        return lambda channel, n: channel.whole(n, axis)

    def whole(self, n: int, axis: int = 0) -> "Stack":
        """All ``n`` coefficients, stored along ``axis``."""
        return self.stored().whole(n, axis)

    def coefficient(self, index: int) -> Array:
        """One of the coefficients."""
        return self.stored().coefficient(index)

    def zero(self) -> "Zero":
        """A zero of the type of this channel's coefficients."""
        return self.stored().zero()

    # Operations of sources of directions and of hyperplanes on the directions of one
    # leaf, each of which is a coefficient.

    def followed_by(self, other: "Channel") -> "Channel":
        """These directions, and behind them those of another channel."""
        return other.preceded_by(self)

    def preceded_by(self, first: "Channel") -> "Channel":
        """The directions of another channel, and behind them these."""
        a, b = first.stacked(), self.stacked()
        present = (*a.indices, *(a.k + i for i in b.indices))
        return Stack(concatenated(a.array, b.array), 0, present, a.k + b.k)

    def held_fixed(self) -> "Stack":
        """The same number of directions, none of which moves the leaf."""
        stack = self.stacked()
        return stack.in_group(None, stack.k)

    def in_group(self, group: int | None, size: int) -> "Stack":
        """The directions as those of one of several groups, and zero in the others.

        Args:
          group: its number; ``None`` if the leaf is in none and does not move.
          size: how many directions there are of all groups together.
        """
        return self.stacked().in_group(group, size)

    def gram(self, dtype: DTypeLike) -> Float[Array, "k k"]:
        """``⟨v_i, v_j⟩``, accumulated in a dtype."""
        return self.stacked().gram(dtype)

    def combined(
        self, coefficients: Float[Array, " k"], dtype: DTypeLike
    ) -> Inexact[Array, "..."]:
        """``Σ_i coefficients_i v_i``, accumulated in a dtype."""
        return self.stacked().combined(coefficients, dtype)

    # Python calls these with any operand, and takes NotImplemented for no.

    def __add__(self, other: object) -> "Channel":
        if not isinstance(other, Channel):
            return NotImplemented
        stacks = stacks_of(self, other)
        if stacks is None:
            return self if other.is_zero else other
        # The last position wins: it is where a matrix product has left its result. What
        # is moved to it is the broadcast of a bias, whose transpose XLA folds away.
        axis = max(stack.axis for stack in stacks)
        a, b = _padded_alike([stack.moved(axis) for stack in stacks])
        return dataclasses.replace(a, array=a.array + b.array)

    def __radd__(self, other: object) -> "Channel":
        # Python's sum begins with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> "Channel":
        if not isinstance(other, Channel):
            return NotImplemented
        return self + -1 * other

    def __neg__(self) -> "Channel":
        return -1 * self

    def __mul__(self, coefficient: "ArrayLike | Channel") -> "Channel":
        if isinstance(coefficient, Channel):
            return NotImplemented
        return self.scaled(coefficient)

    __rmul__ = __mul__

    def __truediv__(self, divisor: "ArrayLike | Channel") -> "Channel":
        if isinstance(divisor, Channel):
            return NotImplemented
        return self.scaled(divisor, lambda c, x: x / c)


@register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Zero(Channel):
    """A channel that is known to be zero. It costs nothing and is never stored.

    Attributes:
      like: an array of the type of one coefficient. The channels of a number have its
        primal. ``ZERO``, the zero of no type in particular, has none: it is for sums.
    """

    like: Leaf | jax.ShapeDtypeStruct | None = None

    is_zero = True

    def stored(self) -> "Zero":
        return self

    def stacked(self) -> "Stack":
        raise TypeError("a zero has no coefficients to stack; whole(n) makes some.")

    def behind(self, first: PyTree) -> "Zero":
        del first
        return self

    def moved(self, axis: int) -> "Zero":
        del axis
        return self

    def declared(self, axis: int) -> "Zero":
        del axis
        return self

    def broadcast(self, shape: tuple[int, ...]) -> "Zero":
        del shape
        return ZERO

    def rotated(self, start: Array, n: int) -> "Zero":
        del start, n
        return self

    def scaled(
        self, coefficient: ArrayLike, multiply: Callable = jnp.multiply
    ) -> "Zero":
        del coefficient, multiply
        return self

    def mapped(self, function: Callable, axis: int) -> "Zero":
        del function, axis
        return ZERO

    def summed(self, weights: ArrayLike | None = None) -> "Zero":
        del weights
        return self

    def padded(self, present: tuple[int, ...] | None, n: int) -> "Zero":
        del present, n
        return self

    def whole(self, n: int, axis: int = 0) -> "Stack":
        # Made from the primal, the zeros have its sharding and its manual axes.
        return Stack(lax.broadcast(self.coefficient(0), (n,))).moved(axis)

    def coefficient(self, index: int) -> Array:
        del index
        if self.like is None:
            raise TypeError(
                "a zero must have a type where its value is needed; got ZERO, which "
                "has none. Take that of a number instead: HyperDual(primal).tangents."
            )
        return lax.full_like(self.like, 0)

    def zero(self) -> "Zero":
        return self

    def terms(self, n: int) -> tuple[Array, np.ndarray]:
        return self.whole(0).array, np.arange(0)

    # A function that is mapped over the coefficients takes one operand for all.
    mapped_axis = None

    def operand(self, places: Indices | None = None) -> Array:
        del places
        return self.coefficient(0)

    # Zeros are one node of a tree, whatever they are like.

    def tree_flatten(self) -> tuple[tuple[()], None]:
        return (), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[()]) -> "Zero":
        del aux, children
        return ZERO

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Zero)

    def __hash__(self) -> int:
        return hash(Zero)

    def __repr__(self) -> str:
        return "ZERO"


ZERO = Zero()


@register_tree
@dataclasses.dataclass(frozen=True, eq=False)
class Stack(Channel):
    """Arrays of one shape ``s``, stacked along ``axis`` of ``array``.

    Where the axis sits is static, as the batch axis is in ``jax.vmap``: a product whose
    natural result is ``[batch, k, features]`` leaves it there, and the next product
    folds ``k`` into its batch without a transpose.

    Which coefficients are stored is static too. A direction that moves one layer alone
    is zero on the others, and what is known to be zero is neither stored nor computed.
    For this, a leaf of ``directions`` in :func:`fomoh_jax.quadratic_model` and its like
    may be a stack instead of an array ``[k, *leaf.shape]`` full of zeros::

      v_{present[n]} = array[n], and every other v_i = 0.

    A pytree with one leaf, so that it passes through ``jit`` and ``vmap``.

    Attributes:
      array: shape ``[*s[:axis], n, *s[axis:]]``.
      axis: position of the stacking axis; of directions, 0.
      present: which coefficients the ``n`` arrays are: Python integers from 0 to ``size
        - 1``, ascending; all the others are zero. ``None`` if all are there.
      size: how many coefficients there are, zero or not, where only some are present.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import Stack, quadratic_model
      >>> loss = lambda x: x["a"] ** 2 * x["b"]
      >>> x = {"a": jnp.array(3.0), "b": jnp.array(2.0)}
      >>> one = jnp.ones(1)
      >>> first, second = (Stack(one, present=(i,), size=2) for i in range(2))
      >>> v = {"a": first, "b": second}
      >>> print(quadratic_model(loss, (x,), (v,)).curvature)
      [[4. 6.]
       [6. 0.]]
    """

    array: Leaf
    axis: int = dataclasses.field(default=0, metadata={"static": True})
    present: tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def length(self) -> int:
        """The number of arrays that are stored."""
        return self.array.shape[self.axis]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def k(self) -> int:
        """The number of coefficients, zero or not."""
        return self.length if self.size is None else self.size

    @property
    def indices(self) -> tuple[int, ...]:
        """The index of the coefficient that each of the arrays is."""
        return tuple(range(self.length)) if self.present is None else self.present

    def dense(self) -> Inexact[Array, "{self.k} *s"]:
        """All the arrays, stacked along a leading axis."""
        return self.whole(self.k).array

    @property
    def computed(self) -> Array | None:
        is_ref = isinstance(jax.typeof(self.array), AbstractRef)
        return None if is_ref else self.array

    def stored(self) -> "Stack":
        return self

    def stacked(self) -> "Stack":
        return self

    def behind(self, first: PyTree) -> "Stack":
        if self.length == 1:
            return self
        return lax.optimization_barrier((self, first))[0]

    def moved(self, axis: int) -> "Stack":
        if axis == self.axis:
            return self
        array = jnp.moveaxis(self.array, self.axis, axis)
        return dataclasses.replace(self, array=array, axis=axis)

    def declared(self, axis: int) -> "Stack":
        return dataclasses.replace(self, axis=axis)

    def broadcast(self, shape: tuple[int, ...]) -> "Stack":
        array, axis = self.array, self.axis
        if array.ndim == 1:  # scalars
            array = lax.expand_dims(array, range(1, len(shape) + 1))
        full = (*shape[:axis], array.shape[axis], *shape[axis:])
        array = lax.broadcast_in_dim(array, full, range(len(full)))
        return dataclasses.replace(self, array=array)

    def rotated(self, start: Array, n: int) -> "Stack":
        return Stack(jnp.roll(self.whole(n).array, -start, 0))

    def scaled(
        self, coefficient: ArrayLike, multiply: Callable = jnp.multiply
    ) -> "Stack":
        if jnp.ndim(coefficient):
            coefficient = jnp.expand_dims(coefficient, self.axis)
        return dataclasses.replace(self, array=multiply(coefficient, self.array))

    def mapped(self, function: Callable, axis: int) -> "Stack":
        array = vectorise(function, [self.axis], axis)(self.array)
        return Stack(array, axis, self.present, self.size)

    def whole(self, n: int, axis: int = 0) -> "Stack":
        return self.padded(None, n).moved(axis)

    def coefficient(self, index: int) -> Array:
        if index not in self.indices:
            return lax.full_like(self.moved(0).array[0], 0)
        return self.moved(0).array[self.indices.index(index)]

    def zero(self) -> "Zero":
        shape = [n for i, n in enumerate(self.array.shape) if i != self.axis]
        return Zero(jax.ShapeDtypeStruct(shape, self.dtype))

    def in_group(self, group: int | None, size: int) -> "Stack":
        if group is None:
            return Stack(self.array[:0], 0, (), size)
        present = tuple(group * self.k + i for i in self.indices)
        return Stack(self.array, 0, present, size)

    def gram(self, dtype: DTypeLike) -> Float[Array, "k k"]:
        every = tuple(range(1, self.array.ndim))
        block = lax.dot_general(
            self.array,
            self.array,
            ((every, every), ((), ())),
            preferred_element_type=dtype,
            out_sharding=PartitionSpec() if explicit_sharding(self.array) else None,
        )
        if len(self.indices) == self.k:
            return block
        places = np.ix_(self.indices, self.indices)
        return jnp.zeros((self.k, self.k), dtype).at[places].set(block)

    def combined(
        self, coefficients: Float[Array, " k"], dtype: DTypeLike
    ) -> Inexact[Array, "..."]:
        own = coefficients
        if len(self.indices) < self.k:
            own = coefficients[np.array(self.indices, int)]
        array = self.array
        total = jnp.einsum("i,i...->...", own, array, preferred_element_type=dtype)
        return total.astype(array.dtype)

    @property
    def mapped_axis(self) -> int:
        return self.axis

    def operand(self, places: Indices | None = None) -> Leaf:
        """The arrays at some places along the axis, by default all."""
        if places is None or (
            isinstance(places, np.ndarray)
            and np.array_equal(places, np.arange(self.length))
        ):
            return self.array
        at = self.array.at[(slice(None),) * self.axis + (places,)]
        return at.get(mode="promise_in_bounds")

    def padded(self, present: tuple[int, ...] | None, n: int) -> "Stack":
        """The stack with zeros stored for more of its ``n`` coefficients."""
        if present == self.present:
            return self
        target = range(n) if present is None else present
        places = {index: place for place, index in enumerate(self.indices)}
        source = np.array([places.get(index, len(places)) for index in target])
        held = np.flatnonzero(source < len(places))
        if len(held) == len(source):
            array = self.array
        elif not len(held) or len(held) == held[-1] - held[0] + 1:  # side by side
            before = int(held[0]) if len(held) else 0
            config = [(0, 0, 0)] * self.array.ndim
            config[self.axis] = (before, len(source) - len(held) - before, 0)
            array = lax.pad(self.array, jnp.zeros((), self.array.dtype), config)
        else:
            at = self.array.at[(slice(None),) * self.axis + (source,)]
            array = at.get(mode="fill", fill_value=0)
        return Stack(array, self.axis, present, None if present is None else n)


# The directions of one leaf of the primals.
LeafDirections = Channel | Inexact[Array, "_ ..."]


def is_channel(x: object) -> bool:
    """Whether ``x`` is a leaf of directions that is no array: a tree would look in."""
    return isinstance(x, Channel)


def as_channel(leaf: LeafDirections) -> Channel:
    """A leaf of directions as a channel."""
    return leaf if isinstance(leaf, Channel) else Stack(leaf)


def stacks_of(*channels: Channel) -> list[Stack] | None:
    """The channels as stacks; None if one of them is zero."""
    if any(channel.is_zero for channel in channels):
        return None
    return [channel.stacked() for channel in channels]


def first_stack(channels: Iterable[Zero | Stack]) -> Stack | None:
    """The first that is not zero; None if all of them are."""
    return next((x.stacked() for x in channels if not x.is_zero), None)


def alignment(alternatives: Sequence[Channel]) -> Alignment:
    """A function that brings each of several channels to the same tree structure.

    Args:
      alternatives: the channels, one for each branch; they may be abstract.
    """
    varying = (channel for channel in alternatives if not channel.is_zero)
    first = next(varying, None)
    if first is None:
        return lambda channel, n: channel
    return first.alignment(alternatives)


def alike(channels: Sequence[Channel]) -> list[Zero | Stack]:
    """The channels, with zeros stored wherever one of them has a coefficient.

    Those that are zero altogether stay so.
    """
    stored = [channel.stored() for channel in channels]
    stacks = iter(_padded_alike([x.stacked() for x in stored if not x.is_zero]))
    return [x if x.is_zero else next(stacks) for x in stored]


def _padded_alike(stacks: Sequence[Stack]) -> list[Stack]:
    if len({stack.present for stack in stacks}) < 2:
        return list(stacks)
    union = tuple(sorted(set().union(*(stack.indices for stack in stacks))))
    complete = any(stack.present is None for stack in stacks)
    n, present = max(stack.k for stack in stacks), None if complete else union
    return [stack.padded(present, n) for stack in stacks]
