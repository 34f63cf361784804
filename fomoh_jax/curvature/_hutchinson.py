"""Hutchinson's estimates, from probes of random signs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fomoh_jax._hyperdual import directional_curvature
from fomoh_jax._hyperdual.arguments import check_key
from fomoh_jax._hyperdual.mesh_axes import (
    check_reverse_pass,
    varies_along,
    varying_alike,
)
from fomoh_jax.curvature._coordinates import all_varied, check_scalar
from fomoh_jax.curvature._estimates import (
    Estimate,
    check_probes,
    estimated,
    rademacher,
    stacked,
)


def hutchinson_trace(
    fun: Callable,
    primals: Sequence[Any],
    key: jax.Array,
    probes: int,
    *,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The trace of the Hessian from random directions, all in one forward pass.

    .. math:: \operatorname{tr} H \approx \frac1n \sum_s v_s^\top H v_s,
      \qquad v_s \in \{-1, 1\}^D

    It is unbiased, of variance :math:`2\, (\|H\|_F^2 - \sum_i H_{ii}^2) / n`: exact
    where the Hessian is diagonal. (:func:`fomoh_jax.laplacian` is exact always, for
    ``D`` tangents.)

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      key: PRNG key.
      probes: number of directions ``n``, at least 2.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      An :class:`Estimate` of scalars.

    Raises:
      TypeError: if ``fun`` does not return one real number, if ``primals`` holds
        complex numbers, if ``probes`` or ``chunk_size`` is no Python integer, or if
        ``key`` is no PRNG key.
      ValueError: if ``probes < 2``, ``chunk_size < 1``, or nothing varies.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import hutchinson_trace
      >>> f, x = lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0])
      >>> print(hutchinson_trace(f, (x,), jax.random.key(0), 4).value)  # 6 + 12
      18.0

    References:
      Hutchinson, *A stochastic estimator of the trace of the influence matrix for
      Laplacian smoothing splines*, 1990.
    """
    coordinates = all_varied("hutchinson_trace", fun, primals)
    n = check_probes(probes)
    check_key(key)

    def curvature(keys):
        vectors = rademacher(keys, coordinates.size, coordinates.dtype)
        directions = coordinates.tree(vectors)
        value, _, curvature = directional_curvature(fun, primals, directions)
        check_scalar("hutchinson_trace", value)
        return curvature.astype(coordinates.dtype)

    return Estimate(
        *estimated(stacked(curvature, jax.random.split(key, n), chunk_size))
    )


def hutchinson_diagonal(
    fun: Callable,
    primals: Sequence[Any],
    key: jax.Array,
    probes: int,
    *,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The diagonal of the Hessian from products with random directions.

    .. math:: \operatorname{diag} H \approx \frac1n \sum_s v_s \odot H v_s,
      \qquad v_s \in \{-1, 1\}^D

    It is unbiased, of variance :math:`\sum_{j \ne i} H_{ij}^2 / n`. The products are
    tangents of the gradient, so that reverse mode must be able to take ``fun``: by
    forward passes alone one product costs what the exact diagonal does
    (:func:`fomoh_jax.hessian_diagonal`). :func:`sampled_diagonal` needs no gradient.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      key: PRNG key.
      probes: number of directions ``n``, at least 2.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      An :class:`Estimate` of tuples like ``primals``, with ``None`` for what is not of
      real floating-point numbers.

    Raises:
      TypeError: if ``fun`` does not return one real number, if ``primals`` holds
        complex numbers, if ``probes`` or ``chunk_size`` is no Python integer, or if
        ``key`` is no PRNG key.
      ValueError: if ``probes < 2``, ``chunk_size < 1``, or nothing varies.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import hutchinson_diagonal
      >>> f, x = lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0])
      >>> (diagonal,), _ = hutchinson_diagonal(f, (x,), jax.random.key(0), 4)
      >>> print(diagonal)
      [ 6. 12.]

    References:
      Bekas, Kokiopoulou and Saad, *An estimator for the diagonal of a matrix*, 2007.
    """
    coordinates = all_varied("hutchinson_diagonal", fun, primals)
    n = check_probes(probes)
    check_key(key)
    leaves, structure = jax.tree.flatten(tuple(primals))

    def of_vector(vector):
        moved = structure.flatten_up_to(coordinates.tree(vector))
        full = [x if y is None else y for x, y in zip(leaves, moved, strict=True)]
        value = jax.tree.map(jnp.asarray, fun(*structure.unflatten(full)))
        check_scalar("hutchinson_diagonal", value)
        return value

    here = [x for x in coordinates.leaves if x is not None]
    vector = coordinates.vector(here)
    along = varies_along(jax.eval_shape(of_vector, vector))
    jaxpr = jax.make_jaxpr(of_vector)(vector)
    check_reverse_pass("in hutchinson_diagonal", jaxpr, [along])
    _, product = jax.linearize(jax.grad(of_vector), varying_alike(vector, along))

    def diagonals(keys):
        vectors = rademacher(keys, coordinates.size, coordinates.dtype)
        vectors = varying_alike(vectors, along)
        return vectors * jax.vmap(product)(vectors)

    samples = stacked(diagonals, jax.random.split(key, n), chunk_size)
    return Estimate(*map(coordinates.tree, estimated(samples)))
