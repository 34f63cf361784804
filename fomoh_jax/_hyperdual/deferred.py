"""Directions that are made where an equation takes them, and again for the next one."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Inexact, PyTree

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.delay import again, delayed
from fomoh_jax._hyperdual.mesh_axes import concatenated
from fomoh_jax._hyperdual.trees import register_tree


@register_tree
@dataclasses.dataclass(frozen=True, eq=False)
class Deferred(Channel):
    """``k`` directions of a leaf, as what they are made from.

    A leaf of ``directions`` in :func:`fomoh_jax.quadratic_model` and its like may be
    such an object instead of an array. The array is made where an equation takes
    the leaf, and again where the next one does. The object is a pytree whose leaves are
    those of ``seed``.

    Attributes:
      seed: a pytree of PRNG keys, or of whatever else ``make`` takes.
      make: ``make(seed)``, the array. It must be the same function object at each call,
        or ``jit`` compiles anew.
      shape: of the array, ``(k, *leaf.shape)``.
      dtype: of the array, the leaf's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import Deferred, quadratic_model
      >>> make = lambda key: jax.random.normal(key, (2, 3), "float32")
      >>> v = Deferred(jax.random.key(0), make, (2, 3), jnp.dtype("float32"))
      >>> loss = lambda x: jnp.sum(x ** 2)
      >>> x = jnp.ones(3, "float32")
      >>> model = quadratic_model(loss, (x,), (v,))
      >>> print(bool(jnp.allclose(model.slope, 2 * v.dense().sum(1))))
      True
    """

    is_stored = False

    seed: PyTree
    make: Callable[[PyTree], Array] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: DTypeLike = dataclasses.field(metadata={"static": True})

    @property
    def k(self) -> int:
        return self.shape[0]

    def dense(self) -> Inexact[Array, "{self.k} *s"]:
        """The directions, ``[k, *leaf.shape]``."""
        return self.stored().array

    def stored(self) -> Stack:
        return Stack(self.make(jax.tree.map(again, self.seed)))

    def not_before(self, array: Array | None) -> "Deferred":
        seed = self.seed
        if array is not None and jnp.size(array):
            seed = delayed(seed, array)
        return _Once(seed, self.make, self.shape, self.dtype)

    def followed_by(self, other: Channel) -> "Deferred":
        return _both(self, other)

    def preceded_by(self, first: Channel) -> "Deferred":
        return _both(first, self)

    def held_fixed(self) -> Stack:
        return Stack(jnp.zeros((0, *self.shape[1:]), self.dtype), 0, (), self.k)

    def in_group(self, group: int | None, size: int) -> Stack:
        raise ValueError(
            "layerwise cannot cut directions that are deferred; got a base of "
            "deferred(...). Leave it out."
        )

    def rotated(self, start: Array, n: int) -> "Deferred":
        del n
        return dataclasses.replace(
            self, seed=(self.seed, start), make=_Rotated(self.make)
        )


@register_tree
@dataclasses.dataclass(frozen=True, eq=False)
class _Once(Deferred):
    """A deferred channel that one equation reads, made once for all that it does.

    The next equation reads another one, which waits for the results of this one.
    """

    def stored(self) -> Stack:
        return self._stored

    @functools.cached_property
    def _stored(self) -> Stack:
        return super().stored()


@dataclasses.dataclass(frozen=True)
class _Rotated:
    """Makes directions numbered from another one on; equal to another that does."""

    make: Callable[[PyTree], Array]

    def __call__(self, seed: tuple[PyTree, Array]) -> Array:
        inner, start = seed
        return jnp.roll(self.make(inner), -start, 0)


def _both(first: Channel, second: Channel) -> Deferred:
    """The directions of two channels, deferred where one of them is."""
    a, b = _deferred(first), _deferred(second)
    make = _Concatenation(a.make, b.make)
    return Deferred((a.seed, b.seed), make, (a.k + b.k, *a.shape[1:]), a.dtype)


def _deferred(channel: Channel) -> Deferred:
    if isinstance(channel, Deferred):
        return channel
    stack = channel.stacked()
    shape = (stack.k, *stack.array.shape[1:])
    return Deferred(channel, _dense, shape, stack.dtype)


def _dense(channel: Channel) -> Inexact[Array, "k ..."]:
    return channel.stacked().dense()


@dataclasses.dataclass(frozen=True)
class _Concatenation:
    """Makes the directions of two channels; equal to another of the same two."""

    left: Callable[[PyTree], Array]
    right: Callable[[PyTree], Array]

    def __call__(self, seed: tuple[PyTree, PyTree]) -> Array:
        return concatenated(self.left(seed[0]), self.right(seed[1]))
