"""Directions of which only some move a leaf, and the others are known not to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from fomoh_jax.hyperdual.regenerated import Regenerated


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Active:
    """Of ``k`` directions, those that are not zero on a leaf.

    A leaf of ``directions`` in :func:`fomoh_jax.quadratic_model` and its like may be
    such an object in the place of an array ``[k, *leaf.shape]`` full of zeros::

      v_{present[n]} = array[n], and every other v_i = 0.

    The zeros are static: what follows from them alone, such as the curvature between
    two directions before their layers meet, is neither stored nor computed. A pytree
    with one leaf, so that it passes through ``jit`` and ``vmap``.

    Attributes:
      array: shape ``[len(present), *leaf.shape]``, in the leaf's dtype.
      present: which directions these are: Python integers from 0 to ``k - 1``,
        ascending.
      k: the number of directions.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import Active, quadratic_model
      >>> loss = lambda x: x["a"] ** 2 * x["b"]
      >>> x = {"a": jnp.array(3.0), "b": jnp.array(2.0)}
      >>> one = jnp.ones(1)
      >>> v = {"a": Active(one, (0,), k=2), "b": Active(one, (1,), k=2)}
      >>> print(quadratic_model(loss, (x,), (v,)).curvature)
      [[4. 6.]
       [6. 0.]]
    """

    array: jax.Array
    present: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    k: int = dataclasses.field(metadata={"static": True})

    def dense(self) -> jax.Array:
        """All the directions, ``[k, *leaf.shape]``."""
        if len(self.present) == self.k:
            return self.array
        zeros = jnp.zeros((self.k, *self.array.shape[1:]), self.array.dtype)
        return zeros.at[np.array(self.present, int)].set(self.array)


def is_compact(x: Any) -> bool:
    """Whether ``x`` is a leaf of directions that is no array: a tree would look in."""
    return isinstance(x, (Active, Regenerated))


def as_active(leaf: Any, after: jax.Array | None = None) -> Active:
    """A leaf of directions as those that may not be zero: of an array, all.

    One that is regenerated is made once ``after`` is known.
    """
    if isinstance(leaf, Active):
        return leaf
    if isinstance(leaf, Regenerated):
        leaf = leaf.dense(after)
    return Active(leaf, tuple(range(len(leaf))), len(leaf))
