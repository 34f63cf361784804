"""Hutchinson's estimates, from probes of random signs."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from fomoh_jax._argnums import restricted
from fomoh_jax._hyperdual.arguments import check_key
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.mesh_axes import (
    check_reverse_pass,
    varies_along,
    varying_alike,
)
from fomoh_jax._varied import Varied
from fomoh_jax._weights import check_not_both, read_factor, read_weights
from fomoh_jax.curvature._coordinates import check_not_empty, check_scalar
from fomoh_jax.curvature._estimates import (
    Estimate,
    Keys,
    check_sizes,
    estimated,
    rademacher,
    stacked,
)
from fomoh_jax.curvature._trace_estimates import trace_estimate, traces_of_probes


def hutchinson_trace(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    probes: int,
    weights: ArrayLike | None = None,
    factor: ArrayLike | None = None,
    chunk_size: int | None = None,
) -> Callable[..., Estimate]:
    r"""The trace of the Hessian from random directions, all in one forward pass.

    .. math:: \operatorname{tr} H \approx \frac1n \sum_s v_s^\top H v_s,
      \qquad v_s \in \{-1, 1\}^D

    for ``D`` elements of the arguments. It is unbiased, of variance
    :math:`2\, (\|H\|_F^2 - \sum_i H_{ii}^2) / n`: exact where the Hessian is diagonal.
    (:func:`fomoh_jax.laplacian` is exact always, for ``D`` tangents;
    :func:`sampled_trace` is better where the diagonal hardly varies.)

    With a factor the directions are :math:`S v_s`, and the trace is that of
    :math:`S S^\top H`. With weights it is that of :math:`C H`, from directions whose
    entries are scaled by :math:`\sqrt{|c_i|}`. If weights may be negative, positive and
    negative ones get a direction each, and the pass carries twice as many directions.

    Args:
      fun: a function of pytrees of real arrays that returns a pytree of arrays.
      argnums: which positional argument of ``fun``, or arguments, to differentiate: all
        their elements together.
      probes: number of directions ``n``, at least 2.
      weights: real, shape ``[D]``, the diagonal of :math:`C`, of any sign.
      factor: real, shape ``[D, r]``: :math:`S`, instead of ``weights``.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      A function of a PRNG key and the arguments of ``fun`` that returns an
      :class:`Estimate` of what ``fun`` returns. Under ``jit``, a standard error that is
      not used is not computed, and saves half of the pass (without ``chunk_size``).

    Raises:
      TypeError: if ``probes`` or ``chunk_size`` is no Python integer. At the call, if
        ``key`` is no PRNG key, if a differentiated argument is not of real
        floating-point numbers, an output not of floating-point numbers, or ``weights``
        or ``factor`` not of real numbers.
      ValueError: if ``probes < 2`` or ``chunk_size < 1``, or both ``weights`` and
        ``factor`` are given. At the call, if ``argnums`` is out of range, a shape is
        not as said, or nothing varies.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import hutchinson_trace
      >>> f, x = lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0])
      >>> print(hutchinson_trace(f, probes=4)(jax.random.key(0), x).value)  # 6 + 12
      18.0

    References:
      Hutchinson, *A stochastic estimator of the trace of the influence matrix for
      Laplacian smoothing splines*, 1990; Hu, Shi, Karniadakis and Kawaguchi,
      *Hutchinson trace estimation for high-dimensional and high-order PINNs*, 2024,
      arXiv:2312.14499.
    """
    name, n = "hutchinson_trace", check_sizes(probes, chunk_size)
    check_not_both(name, weights, factor)

    def estimate(key: PRNGKeyArray, /, *args: PyTree, **kwargs: PyTree) -> Estimate:
        check_key(key)
        function, varied = restricted(name, fun, argnums, args, kwargs)
        check_not_empty(name, varied)
        scaled = _scaled(weights, factor, varied)

        def of_probes(keys):
            vectors = scaled(keys)
            channels = list(map(Stack, varied.directions(jnp.concatenate(vectors))))
            signs = jnp.repeat(jnp.array([1.0, -1.0])[: len(vectors)], len(keys))
            return name, function, varied, channels, signs, len(keys)

        keys = jax.random.split(key, n)
        if chunk_size is None or chunk_size >= n:
            return trace_estimate(*of_probes(keys))
        samples = stacked(
            lambda keys: traces_of_probes(*of_probes(keys)), keys, chunk_size
        )
        estimates = [estimated(x) for x in jax.tree.leaves(samples)]
        unflatten = jax.tree.structure(samples).unflatten
        return Estimate(*map(unflatten, zip(*estimates)))

    return estimate


def _scaled(
    weights: ArrayLike | None, factor: ArrayLike | None, varied: Varied
) -> Callable[[Keys], list[Float[Array, "n D"]]]:
    """Directions from keys: what adds to a trace, and what is taken from it."""
    size, dtype = varied.size, varied.dtype
    if factor is not None:
        s = read_factor(factor, size).astype(dtype)
        times = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
        return lambda keys: [times(rademacher(keys, s.shape[1], dtype), s.T)]
    if weights is None:
        return lambda keys: [rademacher(keys, size, dtype)]
    c = read_weights(weights, size, diagonal=True).astype(dtype)
    roots = [jnp.sqrt(jnp.maximum(c, 0)), jnp.sqrt(jnp.maximum(-c, 0))]
    if not isinstance(weights, Tracer) and np.all(np.asarray(weights) >= 0):
        del roots[1]

    def of_either_sign(keys):
        signs = rademacher(keys, size, dtype)
        return [signs * root[None] for root in roots]

    return of_either_sign


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

    for ``D`` elements of the arguments. It is unbiased, of variance
    :math:`\sum_{j \ne i} H_{ij}^2 / n`. The products are tangents of the gradient, so
    that reverse mode must be able to take ``fun``: by forward passes alone one product
    costs what the exact diagonal does (:func:`fomoh_jax.hessian_diagonal`).
    :func:`sampled_diagonal` needs no gradient.

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
        check_not_empty(name, varied)

        def of_vector(vector):
            value = jax.tree.map(jnp.asarray, function(*varied.tree(vector)))
            check_scalar(name, value)
            return value

        vector = varied.vector(varied.args)
        along = varies_along(jax.eval_shape(of_vector, vector))
        jaxpr = jax.make_jaxpr(of_vector)(vector)
        check_reverse_pass(f"in {name}", jaxpr, [along])
        _, product = jax.linearize(jax.grad(of_vector), varying_alike(vector, along))

        def diagonals(keys):
            vectors = rademacher(keys, varied.size, varied.dtype)
            vectors = varying_alike(vectors, along)
            return vectors * jax.vmap(product)(vectors)

        samples = stacked(diagonals, jax.random.split(key, n), chunk_size)
        return Estimate(*map(varied.pieces, estimated(samples)))

    return estimate
