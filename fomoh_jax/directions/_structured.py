"""Directions that follow the parameters' structure, or the chain's updates."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from fomoh_jax._hyperdual.channels import LeafDirections, Stack, as_channel, is_channel
from fomoh_jax._span import sharded_like
from fomoh_jax.directions._random import gaussian
from fomoh_jax.directions._source import Directions, check_base


def incoming() -> Directions:
    r"""The updates that the chain hands in, as one direction.

    .. math:: V = [u]

    The gradient gives FoMoH-BP; after ``optax.scale_by_adam()`` it is Adam's direction.
    ``update`` then needs updates, and refuses ``None``.

    Returns:
      A source of one direction.

    Raises:
      ValueError: from ``sample``, if the updates are ``None`` or have another structure
        than the parameters.

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

    def sample(key, params, updates, state=()):
        del key, state
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

    return Directions(1, sample, is_random=False)


def coordinates() -> Directions:
    """Each coordinate of the parameters as a direction: together the whole space.

    The model of ``scale_by_hyperplane`` then has the whole gradient and Hessian, and
    its step is that of Newton's method, or of another that its solver is for. It is
    for few parameters, ``D``: a forward pass carries ``D`` tangents and up to
    ``D (D + 1) / 2`` second-order coefficients (``plans.adjoint()`` carries none of
    these). A direction is zero on all leaves but one, and statically so
    (:class:`fomoh_jax.Stack`). Coordinates that ``masked`` holds fixed still count:
    their directions are zero everywhere. A forward gradient along coordinates is the
    gradient divided by ``D``.

    Returns:
      A source of as many directions as there are parameters, in the order of
      ``jax.flatten_util.ravel_pytree``.

    Raises:
      ValueError: from ``sample``, if there are no parameters.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from fomoh_jax import directions, scale_by_hyperplane, solvers
      >>> rosenbrock = lambda p: (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2
      >>> newton = optax.chain(
      ...   scale_by_hyperplane(
      ...     directions.coordinates(), solvers.trust_region(scaled=True)
      ...   ),
      ...   optax.scale(-1.0),
      ... )
      >>> params = {"x": jnp.array(-1.2), "y": jnp.array(1.0)}
      >>> state = newton.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   updates, state = newton.update(None, state, params, value_fn=rosenbrock)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(30):
      ...   params, state = step(params, state)
      >>> print(f"{params['x']:.4f} {params['y']:.4f}")
      1.0000 1.0000
    """

    # Parameters may be abstract, of which jnp.size knows nothing.
    sizes = lambda params: [math.prod(np.shape(p)) for p in jax.tree.leaves(params)]

    def sample(key, params, updates, state=()):
        del key, updates, state
        leaves, structure = jax.tree.flatten(params)
        *offsets, k = np.cumsum([0, *sizes(params)]).tolist()
        if k == 0:
            raise ValueError("coordinates() needs parameters; all leaves are empty.")

        def of_leaf(leaf, start, end):
            dtype, size = jnp.result_type(leaf), end - start
            unit = jnp.eye(size, dtype=dtype).reshape(size, *jnp.shape(leaf))
            return Stack(sharded_like(leaf, unit), 0, tuple(range(start, end)), k)

        return structure.unflatten(map(of_leaf, leaves, offsets, [*offsets[1:], k]))

    return Directions(lambda params: sum(sizes(params)), sample, is_random=False)


def layerwise(base: Directions | None = None, *, by: str = "layer") -> Directions:
    r"""Each direction of ``base``, cut into one for every layer.

    With the parameters in :math:`L` layers, and :math:`P_l` the projection onto layer
    :math:`l`,

    .. math:: v \;\mapsto\; P_1 v, \dots, P_L v

    so that each layer gets a step length of its own. A direction is zero on all layers
    but one, and statically so (:class:`fomoh_jax.Stack`): a quadratic model in the
    ``L`` directions of a network of ``L = 10`` layers takes less than a quarter of the
    operations of one in ten directions that move everything.

    A layer is all leaves whose paths differ in nothing but their last key: the kernel
    and the bias of a ``flax`` layer, the tuple in ``[(w, b), (w, b)]``. Leaves at the
    top level, as in ``{"w1": …, "b1": …, "w2": …}``, would be one layer: take
    ``by="leaf"`` for these.

    Args:
      base: the directions to cut; ``gaussian(1)`` by default. ``layerwise(
        incoming())`` gives each layer's part of the chain's update.
      by: ``"layer"``, or ``"leaf"`` for one direction a leaf.

    Returns:
      A source of ``L`` times as many directions as ``base``: all those of the first
      layer, then those of the second, in the order of the leaves. How many that are is
      known by its ``count(params)``.

    Raises:
      TypeError: if ``base`` is no source of directions.
      ValueError: if ``by`` is neither ``"layer"`` nor ``"leaf"``; from ``sample``, if
        the directions of ``base`` are deferred.

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
    check_base(base)
    if by not in ("layer", "leaf"):
        raise ValueError(f'by must be "layer" or "leaf"; got {by!r}.')

    layers = lambda params: _layers(params, by)
    return grouped(base, layers, lambda params: len(set(layers(params))))


def grouped(
    base: Directions,
    groups: Callable[[PyTree], Sequence[int | None]],
    count: Callable[[PyTree], int],
) -> Directions:
    """Each direction of ``base``, cut into one for every group of leaves.

    Args:
      base: the directions to cut.
      groups: of the parameters, the number of each leaf's group; ``None`` for one that
        stays as it is.
      count: of the parameters, how many groups there are, some of which may be empty.
    """

    def size(params):
        return base.count(params) * count(params)

    def sample(key, params, updates, state=()):
        vectors = base.draw(key, params, updates, state)
        leaves, structure = jax.tree.flatten(vectors, is_leaf=is_channel)

        def cut(leaf: LeafDirections, group: int | None) -> Stack:
            return as_channel(leaf).in_group(group, size(params))

        return structure.unflatten(map(cut, leaves, groups(params)))

    return Directions(size, sample, base.init, base.advance, is_random=base.is_random)


def _layers(params: PyTree, by: str) -> list[int]:
    """The number of the layer of each leaf; layers count as they first appear."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if by == "leaf":
        return list(range(len(paths)))
    siblings = Counter(path[:-1] for path in paths)

    def layer(path: KeyPath) -> KeyPath:
        # flax keeps an array in a box (a Variable, a Partitioned) of which it is the
        # one child: the box is the leaf.
        boxed = path and getattr(path[-1], "name", None) == "value"
        return path[:-2] if boxed and siblings[path[:-1]] == 1 else path[:-1]

    numbers: dict[KeyPath, int] = {}
    return [numbers.setdefault(layer(path), len(numbers)) for path in paths]


def masked(base: Directions, mask: PyTree | Callable[[PyTree], PyTree]) -> Directions:
    r"""The directions of ``base`` with some of the parameters held fixed.

    .. math:: v \;\mapsto\; P v

    with the projection :math:`P` onto the leaves that are not masked. On the others the
    directions are zero, and statically so: what depends on these alone is computed once
    and not once a direction.

    Args:
      base: the directions to restrict.
      mask: as in ``optax.masked``: a tree like the parameters, or a prefix of it, of
        Python Booleans, ``True`` where a leaf moves; or a function of the parameters
        that returns one.

    Returns:
      A source of as many directions as ``base``.

    Raises:
      TypeError: if ``base`` is no source of directions.
      ValueError: from ``sample``, if the mask does not fit the parameters or holds
        everything fixed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> params = {"backbone": jnp.zeros(3), "head": jnp.zeros(2)}
      >>> mask = {"backbone": False, "head": True}
      >>> source = directions.masked(directions.gaussian(4), mask)
      >>> v = source.sample(jax.random.key(0), params, None)
      >>> print(v["backbone"].present, v["head"].shape)
      () (4, 2)
    """
    check_base(base)

    def sample(key, params, updates, state=()):
        moves = _spread(mask(params) if callable(mask) else mask, params)
        vectors = base.draw(key, params, updates, state)
        return jax.tree.map(
            lambda leaf, moving: leaf if moving else as_channel(leaf).held_fixed(),
            vectors,
            moves,
            is_leaf=is_channel,
        )

    return Directions(
        base.size, sample, base.init, base.advance, is_random=base.is_random
    )


def _spread(mask: PyTree, params: PyTree) -> PyTree[bool]:
    """The mask with a Boolean for each leaf of the parameters."""
    try:
        moves = jax.tree.map(
            lambda m, sub: jax.tree.map(lambda _: m, sub), mask, params
        )
    except ValueError as error:
        raise ValueError(
            "mask must be a tree like params, or a prefix of it, of Booleans; got "
            f"{mask!r} for params of structure {jax.tree.structure(params)}."
        ) from error
    leaves = jax.tree.leaves(moves)
    if not all(isinstance(m, bool) for m in leaves):
        raise ValueError(f"mask must hold Python Booleans; got {mask!r}.")
    if not any(leaves):
        raise ValueError("mask holds all of the parameters fixed; got no True.")
    return moves
