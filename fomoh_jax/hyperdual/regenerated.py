"""Directions that are made again wherever they are needed, and stored nowhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
      seed: a pytree of arrays and PRNG keys.
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
        """The directions, made no earlier than a floating-point array is known.

        XLA computes what depends on nothing as early as it likes, and so all of it at
        once: 12 layers of a network took 3.4 GB in the place of 0.3. What is made
        waits for the first element of ``after``, which no simplification can drop
        since a number need not equal itself; of barriers, XLA's scheduler on the CPU
        knows nothing. (Where it is NaN, and so the loss, the directions are others.)
        """
        seed = self.seed
        if after is not None and jnp.size(after):
            first = jnp.asarray(after)[(0,) * jnp.ndim(after)]
            seed = jax.tree.map(lambda x: _delayed(x, first != first), seed)
        return self.make(seed)


def _delayed(x: jax.Array, false: jax.Array) -> jax.Array:
    """``x``, as far as XLA can tell not before ``false`` is known."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(x)
        impl = jax.random.key_impl(x)
        return jax.random.wrap_key_data(data + false.astype(data.dtype), impl=impl)
    return x
