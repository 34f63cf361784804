"""Random directions."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fomoh_jax._hyperdual import Deferred, LowRank
from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax._span import gram, mixed, sharded_like
from fomoh_jax.directions._source import Directions, check_base


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

    Their forward gradient is unbiased, as that of :func:`gaussian` is, and they have
    the same length each time: ``|v|² = D``, the number of parameters.

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


def sparse(k: int, rate: float) -> Directions:
    r"""``k`` Gaussian directions with a part of their entries zero.

    .. math:: v = m \odot z / \sqrt{1 - p}, \qquad z \sim N(0, I), \quad
      m_j \sim \mathrm{Bernoulli}(1 - p)

    so that :math:`E[v v^\top] = I`. The reference implementation calls it tangent
    dropout. Nothing is saved by it: the zeros are elsewhere in each direction.

    Args:
      k: number of directions, at least 1.
      rate: :math:`p`, the expected part of zeros, in [0, 1).

    Returns:
      A source of directions.

    Raises:
      TypeError: if ``k`` is not a Python integer.
      ValueError: if ``k < 1`` or ``rate`` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> source = directions.sparse(2, rate=0.9)
      >>> v = source.sample(jax.random.key(0), jnp.zeros(1000), None)
      >>> print(bool(jnp.mean(v == 0) > 0.85))
      True

    References:
      Cobb et al., 2024, arXiv:2408.10419, the reference implementation.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be at least 0 and below 1; got {rate}.")

    def sampler(key, shape, dtype):
        of_values, of_mask = jax.random.split(key)
        kept = jax.random.bernoulli(of_mask, 1 - rate, shape)
        values = jax.random.normal(of_values, shape, dtype) / (1 - rate) ** 0.5
        return jnp.where(kept, values, 0).astype(dtype)

    return _random(k, sampler)


def low_rank(k: int, rank: int = 1) -> Directions:
    r"""``k`` directions that are a product of two thin factors on every matrix.

    .. math:: v = U V^\top / \sqrt r, \qquad U_{ij}, V_{ij} \sim N(0, 1), \quad
      U \in \mathbb{R}^{m \times r}, \ V \in \mathbb{R}^{n \times r}

    so that :math:`E[v v^\top] = I`, and Gaussian directions on all other leaves. They
    take :math:`r (m + n)` random numbers instead of :math:`m n`, and are not
    multiplied out (:class:`fomoh_jax.LowRank`): not in products with the matrix, not
    in the Gram matrix, and in the step once for all of them. In a sum with other
    directions, ``low_rank(k) + b``, they are.

    Args:
      k: number of directions, at least 1.
      rank: :math:`r`, at least 1.

    Returns:
      A source of directions.

    Raises:
      TypeError: if ``k`` or ``rank`` is not a Python integer.
      ValueError: if ``k < 1`` or ``rank < 1``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> params = {"w": jnp.zeros((300, 200)), "b": jnp.zeros(200)}
      >>> v = directions.low_rank(4).sample(jax.random.key(0), params, None)
      >>> print(v["w"].shape, v["w"].left.shape, v["w"].right.shape, v["b"].shape)
      (4, 300, 200) (4, 300, 1) (4, 200, 1) (4, 200)

    References:
      Sarkar et al., *Evolution Strategies at the Hyperscale*, 2025, arXiv:2511.16652.
    """
    k, rank = check_size("k", k), check_size("rank", rank)

    def of_leaf(key, leaf):
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if len(shape) != 2:
            drawn = jax.random.normal(key, (k, *shape), dtype)
            return sharded_like(leaf, drawn)
        left, right = (
            jax.random.normal(own, (k, n, rank), dtype)
            for own, n in zip(jax.random.split(key), shape)
        )
        return LowRank(left / rank**0.5, right)

    def sample(key, params, updates, state=()):
        del updates, state
        return jax.tree.map(of_leaf, optax.tree.split_key_like(key, params), params)

    return Directions(k, sample)


def orthonormal(k: int) -> Directions:
    r"""``k`` random directions of length 1 at right angles to each other.

    .. math:: V = W (W^\top W)^{-1/2}, \qquad W_{ij} \sim N(0, 1)

    uniform among all such frames: :math:`V^\top V = I` and
    :math:`E[v v^\top] = I / D`, for ``D`` parameters. It spans the same hyperplanes as
    ``gaussian(k)``. Use it with solvers that ignore the Gram matrix, and for forward
    gradients, whose variance it lowers where ``k`` is not small beside ``D`` (multiply
    these by ``D``).

    Args:
      k: number of directions, at least 1 and at most the number of parameters.

    Returns:
      A source of directions.

    Raises:
      TypeError: if ``k`` is not a Python integer.
      ValueError: if ``k < 1``; from ``sample``, if there are fewer parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> source = directions.orthonormal(3)
      >>> v = source.sample(jax.random.key(0), jnp.zeros(5), None)
      >>> print(jnp.abs(jnp.round(v @ v.T, 4)))
      [[1. 0. 0.]
       [0. 1. 0.]
       [0. 0. 1.]]
    """
    base = gaussian(k)

    def sample(key, params, updates, state=()):
        count = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
        if k > count:
            raise ValueError(
                f"orthonormal({k}) needs as many parameters; params holds {count}."
            )
        vectors = base.draw(key, params, updates, state)
        lengths, axes = jnp.linalg.eigh(gram(vectors))
        smallest = jnp.finfo(lengths.dtype).tiny
        roots = 1 / jnp.sqrt(jnp.maximum(lengths, smallest))
        return mixed((axes * roots[None]) @ axes.T, vectors)

    return Directions(k, sample)


def deferred(base: Directions) -> Directions:
    """Random directions that are made again wherever they are needed.

    Stored, ``k`` directions take ``k`` times the memory of the parameters, and what the
    random generator needs to make them takes more. Made anew, from the same keys, they
    exist for one leaf at a time: at each equation of the loss that takes it, in the
    Gram matrix and in the step, so that random numbers are made three times or more.
    They are the same as those of ``base``. What a loop or a branch takes is made whole
    before it, and ``plans.adjoint()`` keeps all of them. In a sum, as
    ``deferred(a) + b``, those of ``b`` are stored, and zeros of a layerwise ``b``
    are made as well.

    Args:
      base: ``gaussian(k)``, ``rademacher(k)`` or ``sparse(k, rate)``: a source whose
        directions of a leaf depend on no other leaf.

    Returns:
      A source of as many directions, of leaves :class:`fomoh_jax.Deferred`.

    Raises:
      TypeError: if ``base`` is no source of directions.
      ValueError: if ``base`` makes no leaf alone. (So ``masked(deferred(base), m)``
        and ``deferred(a) + b`` are fine, and the other way round is not.)

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> params, key = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, jax.random.key(0)
      >>> base = directions.gaussian(4)
      >>> v = directions.deferred(base).sample(key, params, None)
      >>> print(v["w"].shape, len(jax.tree.leaves(v)))  # a key a leaf
      (4, 3, 2) 2
      >>> print(bool(jnp.all(v["w"].dense() == base.sample(key, params, None)["w"])))
      True
    """
    check_base(base)
    maker = base.of_leaf
    if maker is None:
        raise ValueError(
            "deferred needs a source whose directions of a leaf depend on its key "
            "alone: gaussian, rademacher or sparse. Write masked(deferred(base), …) "
            "or deferred(a) + b instead of the other way round."
        )

    def sample(key, params, updates, state=()):
        del updates, state

        def of_leaf(key, leaf):
            shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
            make = maker(shape, dtype)
            return Deferred(key, make, (base.count(params), *shape), dtype)

        return jax.tree.map(of_leaf, optax.tree.split_key_like(key, params), params)

    return Directions(base.size, sample)


def _random(size: object, sampler: Callable) -> Directions:
    """``size`` directions of ``sampler(key, shape, dtype)`` on each leaf."""
    k = check_size("k", size)

    @functools.cache
    def of_leaf(shape, dtype):
        return lambda key: sampler(key, (k, *shape), dtype)

    def sample(key, params, updates, state=()):
        del updates, state
        return jax.tree.map(
            lambda key, p: sharded_like(
                p, of_leaf(jnp.shape(p), jnp.result_type(p))(key)
            ),
            optax.tree.split_key_like(key, params),
            params,
        )

    return Directions(k, sample, of_leaf=of_leaf)
