"""The Hessian and its diagonal from values of ``vᵀHv`` alone, for random ``v``."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray, PyTree

from fomoh_jax._argnums import restricted
from fomoh_jax._hyperdual import directional_curvature
from fomoh_jax._hyperdual.arguments import check_key
from fomoh_jax._varied import Varied
from fomoh_jax.curvature._checks import read_real
from fomoh_jax.curvature._coordinates import (
    check_not_empty,
    check_scalar,
    read_like_arguments,
    read_like_hessian,
)
from fomoh_jax.curvature._estimates import (
    Estimate,
    Keys,
    check_sizes,
    gaussian,
    mean_and_error,
    stacked,
    summed,
)
from fomoh_jax.curvature._scaling import magnitude


def sampled_hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    probes: int,
    baseline: PyTree | None = None,
    chunk_size: int | None = None,
) -> Callable[..., Estimate]:
    r"""The Hessian from its curvature along random directions.

    .. math::
      H \approx H_0 + \frac1{2n} \sum_s (v_s^\top H v_s - v_s^\top H_0 v_s)
        (v_s v_s^\top - I), \qquad v_s \sim N(0, I)

    for ``D`` elements of the arguments. One forward pass gives the ``probes`` numbers
    :math:`v_s^\top H v_s`. The baseline :math:`H_0` is a control variate: whatever it
    is, if it does not depend on the sample, the estimate is unbiased, and its variance
    is that of :math:`K = H - H_0`,

    .. math::
      \sum_{ij} \mathrm{Var}\, H_{ij} = \frac1n \left(
        \tfrac14 (D^2 + 9 D + 16) (2 \|K\|_F^2 + (\operatorname{tr} K)^2)
        - \|K\|_F^2 \right).

    The best multiple of the identity is :math:`(\operatorname{tr} H / D)\, I`. By
    default the baseline of a sample is the estimate of that from all other samples. An
    earlier estimate of :math:`H`, from another key, is a better baseline.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      argnums: which positional argument of ``fun``, or arguments, to differentiate.
      probes: number of directions ``n``, at least 2. From ``D (D + 1) / 2`` on,
        :func:`fomoh_jax.hessian` costs no more and is exact.
      baseline: a number :math:`c` for :math:`H_0 = c I`, 0 for none, or a symmetric
        matrix as :func:`fomoh_jax.hessian` returns it, such as the value of an earlier
        estimate.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      A function of a PRNG key and the arguments of ``fun`` that returns an
      :class:`Estimate` of what :func:`fomoh_jax.hessian` returns: a tree like the
      argument of trees like the argument, with leaves of shape ``[*a, *b]``; symmetric.

    Raises:
      TypeError: if ``probes`` or ``chunk_size`` is no Python integer. At the call, if
        ``key`` is no PRNG key, if a differentiated argument is not of real
        floating-point numbers, if ``fun`` does not return one, or if ``baseline`` is
        not of real numbers or not like the Hessian.
      ValueError: if ``probes < 2`` or ``chunk_size < 1``. At the call, if ``argnums``
        is out of range, if nothing varies, or if a shape of ``baseline`` does not
        match.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import sampled_hessian
      >>> f, x = lambda x: x[0] ** 2 * x[1], jnp.array([3.0, 2.0])
      >>> estimate = sampled_hessian(f, probes=100_000)
      >>> hessian, error = estimate(jax.random.key(0), x)
      >>> print(bool(jnp.all(error < 0.1)))
      True
      >>> exact = jnp.array([[4.0, 6.0], [6.0, 0.0]])
      >>> print(bool(jnp.all(jnp.abs(hessian - exact) < 4 * error)))
      True

    References:
      Cobb et al., 2024, arXiv:2408.10419, the reference implementation, whose control
      variate is a baseline ``c I`` that is given.
    """
    name, n = "sampled_hessian", check_sizes(probes, chunk_size)

    def estimate(key: PRNGKeyArray, /, *args: PyTree, **kwargs: PyTree) -> Estimate:
        check_key(key)
        function, varied = restricted(name, fun, argnums, args, kwargs)
        check_not_empty(name, varied)
        known = _read_number(baseline, varied.dtype)
        if known is None and baseline is not None:
            known = read_like_hessian("baseline", baseline, varied)
            known = (known + known.T) / 2
        measured = _measured(name, function, varied)
        keys = jax.random.split(key, n)
        parts = _sampled(measured, varied, keys, known, chunk_size, whole=True)
        return Estimate(*map(varied.blocks, parts))

    return estimate


def sampled_diagonal(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    probes: int,
    baseline: PyTree | None = None,
    chunk_size: int | None = None,
) -> Callable[..., Estimate]:
    r"""The diagonal of the Hessian from its curvature along random directions.

    .. math::
      H_{ii} \approx h_i + \frac1{2n} \sum_s \Big(v_s^\top H v_s
        - \sum_j h_j v_{sj}^2\Big) (v_{si}^2 - 1), \qquad v_s \sim N(0, I)

    As :func:`sampled_hessian`, with a diagonal baseline :math:`h`, in memory that grows
    with ``D``, the number of elements of the arguments, and not its square. With
    :math:`K = H - \operatorname{diag}(h)` and :math:`t = \operatorname{tr} K` the
    variance is

    .. math:: \tfrac1n \left(5 K_{ii}^2 + 8 (K^2)_{ii} + 4 K_{ii} t + \|K\|_F^2
      + \tfrac12 t^2\right),

    much more than that of :func:`hutchinson_diagonal`, which takes reverse mode.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      argnums: which positional argument of ``fun``, or arguments, to differentiate.
      probes: number of directions ``n``, at least 2. From ``D`` on,
        :func:`fomoh_jax.hessian_diagonal` costs no more and is exact.
      baseline: a number for all of :math:`h`, or a tree like what is returned, such as
        the value of an earlier estimate. By default the baseline of a sample is the
        mean of the diagonal, estimated from all other samples.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      A function of a PRNG key and the arguments of ``fun`` that returns an
      :class:`Estimate` of trees like the differentiated argument; with several
      ``argnums``, of tuples of trees.

    Raises:
      TypeError: if ``probes`` or ``chunk_size`` is no Python integer. At the call, if
        ``key`` is no PRNG key, if a differentiated argument is not of real
        floating-point numbers, if ``fun`` does not return one, or if ``baseline`` is
        not of real numbers or not like the diagonal.
      ValueError: if ``probes < 2`` or ``chunk_size < 1``. At the call, if ``argnums``
        is out of range, if nothing varies, or if a shape of ``baseline`` does not
        match.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import sampled_diagonal
      >>> f, x = lambda x: jnp.sum(x**2), jnp.array([1.0, 2.0])
      >>> estimate = sampled_diagonal(f, probes=4, baseline=2.0)
      >>> print(estimate(jax.random.key(0), x).value)
      [2. 2.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, the reference implementation.
    """
    name, n = "sampled_diagonal", check_sizes(probes, chunk_size)

    def estimate(key: PRNGKeyArray, /, *args: PyTree, **kwargs: PyTree) -> Estimate:
        check_key(key)
        function, varied = restricted(name, fun, argnums, args, kwargs)
        check_not_empty(name, varied)
        known = _read_number(baseline, varied.dtype)
        if known is None and baseline is not None:
            known = read_like_arguments("baseline", baseline, varied)
        measured = _measured(name, function, varied)
        keys = jax.random.split(key, n)
        parts = _sampled(measured, varied, keys, known, chunk_size, whole=False)
        return Estimate(*map(varied.pieces, parts))

    return estimate


def _read_number(baseline: PyTree, dtype: DTypeLike) -> Float[Array, ""] | None:
    """A baseline that is one number; None if it is none."""
    if baseline is None or not jax.tree_util.all_leaves([baseline]):
        return None
    array = read_real("baseline", baseline, dtype)
    return None if array.ndim else array


def _measured(
    name: str, fun: Callable, varied: Varied
) -> Callable[[Keys], Float[Array, "n 2"]]:
    """``[n, 2]`` of keys ``[n]``: ``vᵀHv`` and ``|v|²`` of a vector a key."""

    def measured(keys: Keys) -> Float[Array, "n 2"]:
        v = gaussian(keys, varied.size, varied.dtype)
        value, _, curvature = directional_curvature(fun, varied.args, varied.tree(v))
        check_scalar(name, value)
        curvature = curvature.astype(varied.dtype)
        return jnp.stack([curvature, jnp.sum(v * v, 1)], 1)

    return measured


def _sampled(
    measured: Callable[[Keys], Float[Array, "n 2"]],
    varied: Varied,
    keys: Keys,
    baseline: Float[Array, "..."] | None,
    chunk_size: int | None,
    *,
    whole: bool,
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Mean and standard error of the Hessian, or of its diagonal.

    A baseline is a number, a diagonal ``[D]`` or a matrix ``[D, D]``.
    """
    n, size = len(keys), varied.size
    curvature, lengths = stacked(measured, keys, chunk_size).T
    of_all = curvature if baseline is None else jnp.append(curvature, baseline)
    # The standard error takes squares, which need numbers near 1.
    scale = magnitude(of_all)
    curvature = curvature / scale
    baseline = None if baseline is None else baseline / scale
    level, levels = _levels(curvature, lengths, baseline)
    known = baseline if baseline is not None and baseline.ndim else None

    def sums(xs, present):
        keys, curvature, levels = xs
        v = gaussian(keys, size, varied.dtype)
        squares = v * v
        rest = curvature - levels * jnp.sum(squares, 1) - _quadratic(known, v)
        weights = jnp.where(present, rest / 2, 0)
        drift = jnp.where(present, levels - level, 0)
        diagonal = drift[:, None] + weights[:, None] * (squares - 1)
        totals = jnp.sum(diagonal, 0), jnp.sum(diagonal**2, 0)
        if not whole:
            return totals
        products = _gram(weights, v), _gram(weights**2, squares)
        return jax.tree.map(_with_diagonal, products, totals)

    again = jax.random.clone(keys)  # the same vectors, which are not kept
    total, squares = summed(sums, (again, curvature, levels), chunk_size)
    mean, error = mean_and_error(total, squares, n)
    mean += level * jnp.eye(size, dtype=mean.dtype) if whole else level
    mean = mean if known is None else mean + known
    return scale * mean, scale * error


def _levels(
    curvature: Float[Array, " n"],
    lengths: Float[Array, " n"],
    baseline: Float[Array, "..."] | None,
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """The multiple of the identity in the baseline: in the mean, and of each sample.

    ``lengths`` are ``|v|²``.
    """
    if baseline is None:
        # The level of a sample is that of the others: with its own, the estimate would
        # be biased. As a ratio it is exact for a multiple of the identity.
        others = lambda x: jnp.sum(x) - x
        levels = others(curvature) / others(lengths)
        return jnp.mean(levels), levels
    level = jnp.zeros_like(curvature, shape=()) if baseline.ndim else baseline
    return level, jnp.broadcast_to(level, curvature.shape)


def _quadratic(
    known: Float[Array, " D"] | Float[Array, "D D"] | None, v: Float[Array, "n D"]
) -> Float[Array, " n"] | Literal[0]:
    """``vᵀ H₀ v`` of vectors ``[n, D]`` with a diagonal or a matrix."""
    if known is None:
        return 0
    if known.ndim == 1:
        return jnp.matmul(v * v, known, precision=lax.Precision.HIGHEST)
    return jnp.einsum("si,ij,sj->s", v, known, v, precision=lax.Precision.HIGHEST)


def _gram(weights: Float[Array, " n"], v: Float[Array, "n D"]) -> Float[Array, "D D"]:
    """``Σ_s weights_s v_s v_sᵀ``, symmetric to the last bit."""
    product = jnp.matmul(v.T * weights[None], v, precision=lax.Precision.HIGHEST)
    return (product + product.T) / 2


def _with_diagonal(
    matrix: Float[Array, "D D"], diagonal: Float[Array, " D"]
) -> Float[Array, "D D"]:
    return jnp.fill_diagonal(matrix, diagonal, inplace=False)
