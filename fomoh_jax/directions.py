"""Where the hyperplane points: sources of directions.

A source makes a tree like the parameters whose leaves have a leading axis ``k``, or are
an :class:`fomoh_jax.Active` where some of the ``k`` are known to be zero. Sources
compose by ``+``: ``gaussian(7) + incoming()`` spans seven random directions and the
update that the chain hands in.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from fomoh_jax.hyperdual.active import Active, as_active, is_active
from fomoh_jax.hyperdual.arguments import check_size


@dataclasses.dataclass(frozen=True)
class Directions:
    """A source of directions.

    Attributes:
      size: how many directions it makes: an integer, or a function of ``params`` that
        returns one, where that depends on them.
      sample: ``sample(key, params, updates)``, a tree like ``params`` of leaves
        ``[k, *leaf.shape]`` in the leaf's dtype, or :class:`fomoh_jax.Active`.
        ``updates`` are those of the chain, or ``None``.
    """

    size: int | Callable[[Any], int]
    sample: Callable[[chex.PRNGKey, Any, Any], Any]

    def count(self, params: Any) -> int:
        """How many directions it makes for these parameters."""
        return self.size(params) if callable(self.size) else self.size

    @property
    def k(self) -> int:
        """How many directions it makes, whatever the parameters.

        Raises:
          ValueError: if that depends on them.
        """
        if callable(self.size):
            raise ValueError(
                "how many directions this source makes depends on the parameters; ask "
                "for count(params)."
            )
        return self.size

    def __add__(self, other: "Directions") -> "Directions":
        """The directions of both, those of the left operand first."""
        if not isinstance(other, Directions):
            return NotImplemented

        def sample(key, params, updates):
            left, right = jax.random.split(key)
            return jax.tree.map(
                _joined,
                self.sample(left, params, updates),
                other.sample(right, params, updates),
                is_leaf=is_active,
            )

        if callable(self.size) or callable(other.size):
            total = lambda params: self.count(params) + other.count(params)
            return Directions(total, sample)
        return Directions(self.size + other.size, sample)


def _joined(a: Any, b: Any) -> Any:
    """Two leaves of directions as one."""
    if not (is_active(a) or is_active(b)):
        return jnp.concatenate([a, b])
    a, b = as_active(a), as_active(b)
    present = (*a.present, *(a.k + i for i in b.present))
    return Active(jnp.concatenate([a.array, b.array]), present, a.k + b.k)


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


def layerwise(base: Directions | None = None, *, by: str = "layer") -> Directions:
    r"""Each direction of ``base``, cut into one for every layer.

    With the parameters in :math:`L` layers, and :math:`P_l` the projection onto layer
    :math:`l`,

    .. math:: v \;\mapsto\; P_1 v, \dots, P_L v

    so that each layer gets a step length of its own. A direction is zero on all layers
    but one, and statically so (:class:`fomoh_jax.Active`): a quadratic model in the
    ``L`` directions of a network of ``L = 10`` layers takes less than a quarter of the
    operations of one in ten directions that move everything.

    A layer is all leaves whose paths differ in nothing but their last key: the kernel
    and the bias of a ``flax`` layer, the tuple in ``[(w, b), (w, b)]``. Leaves at the
    top level, as in ``{"w1": …, "b1": …, "w2": …}``, would be one layer: take
    ``by="leaf"`` for these.

    Args:
      base: the directions to cut; ``gaussian(1)`` by default. Of ``incoming()``, each
        layer's part of the chain's update.
      by: ``"layer"``, or ``"leaf"`` for one direction a leaf.

    Returns:
      A source of ``L`` times as many directions as ``base``: all those of the first
      layer, then those of the second, in the order of the leaves. How many that are is
      known by its ``count(params)``.

    Raises:
      TypeError: if ``base`` is no source of directions.
      ValueError: if ``by`` is neither ``"layer"`` nor ``"leaf"``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> layer = lambda i, o: (jnp.zeros((i, o)), jnp.zeros(o))
      >>> params = [layer(3, 4), layer(4, 2)]
      >>> source = directions.gaussian(3) + directions.layerwise()
      >>> source.count(params)
      5
      >>> (w1, b1), (w2, b2) = source.sample(jax.random.key(0), params, None)
      >>> print(w1.present, b1.present, w2.present, w2.array.shape)
      (0, 1, 2, 3) (0, 1, 2, 3) (0, 1, 2, 4) (4, 4, 2)
    """
    base = gaussian(1) if base is None else base
    if not isinstance(base, Directions):
        raise TypeError(f"base must be a source of directions; got {base!r}.")
    if by not in ("layer", "leaf"):
        raise ValueError(f'by must be "layer" or "leaf"; got {by!r}.')

    def count(params):
        return base.count(params) * len(set(_layers(params, by)))

    def sample(key, params, updates):
        vectors = base.sample(key, params, updates)
        leaves, structure = jax.tree.flatten(vectors, is_leaf=is_active)
        layers, k = _layers(params, by), count(params)

        def restricted(leaf: Any, layer: int) -> Active:
            whole = as_active(leaf)
            present = tuple(layer * whole.k + i for i in whole.present)
            return Active(whole.array, present, k)

        return structure.unflatten(map(restricted, leaves, layers))

    return Directions(count, sample)


def _layers(params: Any, by: str) -> list[int]:
    """For each leaf, the number of its layer; layers count as they first appear."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if by == "leaf":
        return list(range(len(paths)))
    siblings = Counter(path[:-1] for path in paths)

    def layer(path: tuple[Any, ...]) -> tuple[Any, ...]:
        # flax keeps an array in a box (a Variable, a Partitioned) of which it is the
        # one child: the box is the leaf.
        boxed = path and getattr(path[-1], "name", None) == "value"
        return path[:-2] if boxed and siblings[path[:-1]] == 1 else path[:-1]

    numbers: dict[tuple[Any, ...], int] = {}
    return [numbers.setdefault(layer(path), len(numbers)) for path in paths]


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
