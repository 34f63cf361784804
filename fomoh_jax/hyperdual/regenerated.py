"""Directions that are made again wherever they are needed, and stored nowhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Regenerated:
    """The ``k`` directions of a leaf, as what they are made from.

    A leaf of ``directions`` in :func:`fomoh_jax.quadratic_model` and its like may be
    such an object in the place of an array. The interpreter makes the array where an
    equation takes the leaf, and again where the next one does. A pytree whose leaves
    are those of ``seed``.

    Attributes:
      seed: a pytree of PRNG keys, or of whatever else ``make`` takes.
      make: ``make(seed)``, the array; a function that is the same object each time, so
        that ``jit`` knows it again.
      shape: of the array, ``(k, *leaf.shape)``.
      dtype: of the array, the leaf's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import Regenerated, quadratic_model
      >>> make = lambda key: jax.random.normal(key, (2, 3), "float32")
      >>> v = Regenerated(jax.random.key(0), make, (2, 3), jnp.dtype("float32"))
      >>> loss = lambda x: jnp.sum(x ** 2)
      >>> x = jnp.ones(3, "float32")
      >>> model = quadratic_model(loss, (x,), (v,))
      >>> print(bool(jnp.allclose(model.slope, 2 * v.dense().sum(1))))
      True
    """

    seed: Any
    make: Callable[[Any], jax.Array] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    def dense(self, after: jax.Array | None = None) -> jax.Array:
        """The directions, made no earlier than an array of numbers is known.

        XLA computes what depends on nothing as early as it likes, and so all of it at
        once. Keys, and other integers of the seed, wait for ``after``.
        """
        seed = jax.tree.map(_again, self.seed)
        if after is not None and jnp.size(after):
            seed = jax.tree.map(lambda x: _delayed(x, _never(_part(after))), seed)
        return self.make(seed)


def _again(x: Any) -> Any:
    """A key that may be used although it was before, as jax_debug_key_reuse asks."""
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return jax.random.clone(x) if is_key else x


def _part(x: jax.Array) -> jax.Array:
    """A number that is known once the array is."""
    x = lax.stop_gradient(x)
    if any(axis is not None for axis in jax.typeof(x).sharding.spec):
        return jnp.sum(x)  # an element of what is sharded by hand cannot be taken
    return x[(0,) * jnp.ndim(x)]


@jax.custom_batching.custom_vmap
def _never(x: jax.Array) -> jax.Array:
    """False, as XLA does not know: NaN is the number that does not equal itself.

    (Of a barrier, its scheduler on the CPU knows nothing.)
    """
    return (x != x) & (x == x)


@_never.def_vmap
def _never_of_any(size: int, batched: list[bool], x: jax.Array) -> tuple:
    # A key stays one key: some generators make other numbers of a batch of them.
    del size, batched
    return jnp.any(_never(x)), False


def _delayed(x: jax.Array, never: jax.Array) -> jax.Array:
    """``x``, as far as XLA can tell not before ``never`` is known."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(x)
        impl = jax.random.key_impl(x)
        return jax.random.wrap_key_data(data + never.astype(data.dtype), impl=impl)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x + never.astype(x.dtype)
    return x
