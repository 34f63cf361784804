"""Hutchinson's estimates, from probes of random signs."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from fomoh_jax._argnums import restricted
from fomoh_jax._hyperdual import directional_curvature
from fomoh_jax._hyperdual.arguments import check_key
from fomoh_jax._hyperdual.mesh_axes import (
    check_reverse_pass,
    varies_along,
    varying_alike,
)
from fomoh_jax.curvature._coordinates import check_scalar, coordinates_of
from fomoh_jax.curvature._estimates import (
    Estimate,
    check_sizes,
    estimated,
    rademacher,
    stacked,
)


def hutchinson_trace(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    probes: int,
    chunk_size: int | None = None,
) -> Callable[..., Estimate]:
    r"""The trace of the Hessian from random directions, all in one forward pass.

    .. math:: \operatorname{tr} H \approx \frac1n \sum_s v_s^\top H v_s,
      \qquad v_s \in \{-1, 1\}^D

    It is unbiased, of variance :math:`2\, (\|H\|_F^2 - \sum_i H_{ii}^2) / n`: exact
    where the Hessian is diagonal. (:func:`fomoh_jax.laplacian` is exact always, for
    ``D`` tangents.)

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      argnums: which positional argument of ``fun``, or arguments, to differentiate: all
        their elements together.
      probes: number of directions ``n``, at least 2.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      A function of a PRNG key and the arguments of ``fun`` that returns an
      :class:`Estimate` of scalars.

    Raises:
      TypeError: if ``probes`` or ``chunk_size`` is no Python integer. At the call, if
        ``key`` is no PRNG key, if a differentiated argument is not of real
        floating-point numbers, or if ``fun`` does not return one.
      ValueError: if ``probes < 2`` or ``chunk_size < 1``. At the call, if ``argnums``
        is out of range, or nothing varies.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import hutchinson_trace
      >>> f, x = lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0])
      >>> print(hutchinson_trace(f, probes=4)(jax.random.key(0), x).value)  # 6 + 12
      18.0

    References:
      Hutchinson, *A stochastic estimator of the trace of the influence matrix for
      Laplacian smoothing splines*, 1990.
    """
    name, n = "hutchinson_trace", check_sizes(probes, chunk_size)

    def estimate(key: PRNGKeyArray, /, *args: PyTree, **kwargs: PyTree) -> Estimate:
        check_key(key)
        function, varied = restricted(name, fun, argnums, args, kwargs)
        coordinates = coordinates_of(name, varied)

        def curvature(keys):
            vectors = rademacher(keys, coordinates.size, coordinates.dtype)
            directions = coordinates.tree(vectors)
            value, _, curved = directional_curvature(function, varied.args, directions)
            check_scalar(name, value)
            return curved.astype(coordinates.dtype)

        samples = stacked(curvature, jax.random.split(key, n), chunk_size)
        return Estimate(*estimated(samples))

    return estimate


def hutchinson_diagonal(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    probes: int,
    chunk_size: int | None = None,
) -> Callable[..., Estimate]:
    r"""The diagonal of the Hessian from products with random directions.

    .. math:: \operatorname{diag} H \approx \frac1n \sum_s v_s \odot H v_s,
      \qquad v_s \in \{-1, 1\}^D

    It is unbiased, of variance :math:`\sum_{j \ne i} H_{ij}^2 / n`. The products are
    tangents of the gradient, so that reverse mode must be able to take ``fun``: by
    forward passes alone one product costs what the exact diagonal does
    (:func:`fomoh_jax.hessian_diagonal`). :func:`sampled_diagonal` needs no gradient.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      argnums: which positional argument of ``fun``, or arguments, to differentiate.
      probes: number of directions ``n``, at least 2.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      A function of a PRNG key and the arguments of ``fun`` that returns an
      :class:`Estimate` of trees like the differentiated argument; with several
      ``argnums``, of tuples of trees.

    Raises:
      TypeError: if ``probes`` or ``chunk_size`` is no Python integer. At the call, if
        ``key`` is no PRNG key, if a differentiated argument is not of real
        floating-point numbers, or if ``fun`` does not return one.
      ValueError: if ``probes < 2`` or ``chunk_size < 1``. At the call, if ``argnums``
        is out of range, or nothing varies.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import hutchinson_diagonal
      >>> f, x = lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0])
      >>> print(hutchinson_diagonal(f, probes=4)(jax.random.key(0), x).value)
      [ 6. 12.]

    References:
      Bekas, Kokiopoulou and Saad, *An estimator for the diagonal of a matrix*, 2007.
    """
    name, n = "hutchinson_diagonal", check_sizes(probes, chunk_size)

    def estimate(key: PRNGKeyArray, /, *args: PyTree, **kwargs: PyTree) -> Estimate:
        check_key(key)
        function, varied = restricted(name, fun, argnums, args, kwargs)
        coordinates = coordinates_of(name, varied)

        def of_vector(vector):
            value = jax.tree.map(jnp.asarray, function(*coordinates.tree(vector)))
            check_scalar(name, value)
            return value

        vector = coordinates.vector(varied.args)
        along = varies_along(jax.eval_shape(of_vector, vector))
        jaxpr = jax.make_jaxpr(of_vector)(vector)
        check_reverse_pass(f"in {name}", jaxpr, [along])
        _, product = jax.linearize(jax.grad(of_vector), varying_alike(vector, along))

        def diagonals(keys):
            vectors = rademacher(keys, coordinates.size, coordinates.dtype)
            vectors = varying_alike(vectors, along)
            return vectors * jax.vmap(product)(vectors)

        samples = stacked(diagonals, jax.random.split(key, n), chunk_size)
        return Estimate(*map(varied.pieces, estimated(samples)))

    return estimate
