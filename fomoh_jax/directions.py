"""Where the hyperplane points: sources of directions.

A source makes a tree like the parameters whose leaves have a leading axis ``k``.
Sources compose by ``+``: ``gaussian(7) + incoming()`` spans seven random directions and
the update that the chain hands in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from fomoh_jax.hyperdual.arguments import check_size


@dataclasses.dataclass(frozen=True)
class Directions:
    """A source of directions.

    Attributes:
      k: how many directions it makes.
      sample: ``sample(key, params, updates)``, a tree like ``params`` of leaves
        ``[k, *leaf.shape]`` in the leaf's dtype. ``updates`` are those of the chain, or
        ``None``.
    """

    k: int
    sample: Callable[[chex.PRNGKey, Any, Any], Any]

    def __add__(self, other: "Directions") -> "Directions":
        """The directions of both, those of the left operand first."""
        if not isinstance(other, Directions):
            return NotImplemented

        def sample(key, params, updates):
            left, right = jax.random.split(key)
            return jax.tree.map(
                lambda a, b: jnp.concatenate([a, b]),
                self.sample(left, params, updates),
                other.sample(right, params, updates),
            )

        return Directions(self.k + other.k, sample)


def gaussian(k: int) -> Directions:
    """``k`` independent directions ``v ~ N(0, I)``.

    Their forward gradient ``(∇f·v) v`` is unbiased: ``E[v vᵀ] = I``.

    Args:
      k: number of directions, at least 1.

    Returns:
      A source of directions.

    Raises:
      TypeError: if ``k`` is not a Python integer.
      ValueError: if ``k < 1``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
      >>> tree = directions.gaussian(4).sample(jax.random.key(0), params, None)
      >>> print(jax.tree.map(jnp.shape, tree))
      {'b': (4, 2), 'w': (4, 3, 2)}

    References:
      Baydin et al., *Gradients without Backpropagation*, 2022, arXiv:2202.08587.
    """
    return _random(k, jax.random.normal)


def rademacher(k: int) -> Directions:
    """``k`` independent directions of random signs, ``v ∈ {-1, 1}^D``.

    Unbiased as :func:`gaussian` is, and of the same length each time: ``|v|² = D``.

    Args:
      k: number of directions, at least 1.

    Returns:
      A source of directions.

    Raises:
      TypeError: if ``k`` is not a Python integer.
      ValueError: if ``k < 1``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> v = directions.rademacher(2).sample(jax.random.key(0), jnp.zeros(3), None)
      >>> print(jnp.abs(v))
      [[1. 1. 1.]
       [1. 1. 1.]]
    """
    return _random(k, jax.random.rademacher)


def incoming() -> Directions:
    """The updates that the chain hands in, as one direction.

    The gradient gives FoMoH-BP; after ``optax.scale_by_adam()`` it is Adam's direction.
    ``update`` then needs updates, and refuses ``None``.

    Returns:
      A source of one direction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> both = directions.gaussian(3) + directions.incoming()
      >>> v = both.sample(jax.random.key(0), jnp.zeros(2), jnp.array([1.0, 2.0]))
      >>> print(both.k, v.shape, v[-1])
      4 (4, 2) [1. 2.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 4 (FoMoH-BP).
    """

    def sample(key, params, updates):
        del key
        if updates is None:
            raise ValueError(
                "incoming() takes the chain's updates as a direction, but update was "
                "called with None. Pass the gradient as the first argument of update, "
                "or put this behind a transformation that makes updates."
            )
        if jax.tree.structure(updates) != jax.tree.structure(params):
            raise ValueError(
                "incoming() needs updates with the structure of params, "
                f"{jax.tree.structure(params)}; got {jax.tree.structure(updates)}."
            )
        return jax.tree.map(
            lambda u, p: jnp.asarray(u, jnp.result_type(p))[None], updates, params
        )

    return Directions(1, sample)


def _random(k: int, sampler: Callable) -> Directions:
    k = check_size("k", k)

    def sample(key, params, updates):
        del updates
        shapes = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct((k, *jnp.shape(p)), jnp.result_type(p)),
            params,
        )
        return optax.tree.random_like(key, shapes, sampler)

    return Directions(k, sample)
