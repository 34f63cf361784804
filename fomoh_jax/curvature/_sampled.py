"""The Hessian and its diagonal from values of ``vᵀHv`` alone, for random ``v``."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fomoh_jax._hyperdual import directional_curvature
from fomoh_jax._hyperdual.arguments import check_key
from fomoh_jax.curvature._checks import read_real
from fomoh_jax.curvature._coordinates import (
    Coordinates,
    all_varied,
    along,
    check_scalar,
)
from fomoh_jax.curvature._estimates import (
    Estimate,
    check_probes,
    gaussian,
    mean_and_error,
    stacked,
    summed,
)
from fomoh_jax.curvature._scaling import magnitude


def sampled_hessian(
    fun: Callable,
    primals: Sequence[Any],
    key: jax.Array,
    probes: int,
    *,
    baseline: jax.typing.ArrayLike | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The Hessian from its curvature along random directions.

    .. math::
      H \approx H_0 + \frac1{2n} \sum_s (v_s^\top H v_s - v_s^\top H_0 v_s)
        (v_s v_s^\top - I), \qquad v_s \sim N(0, I)

    Each forward pass gives numbers and no vector, ``probes`` of them. The baseline
    :math:`H_0` is a control variate: whatever it is, if it does not depend on the
    sample, the estimate is unbiased, and its variance is that of :math:`K = H - H_0`,

    .. math::
      \sum_{ij} \mathrm{Var}\, H_{ij} = \frac1n \left(
        \tfrac14 (D^2 + 9 D + 16) (2 \|K\|_F^2 + (\operatorname{tr} K)^2)
        - \|K\|_F^2 \right).

    The best multiple of the identity is :math:`(\operatorname{tr} H / D)\, I`. By
    default it is found from the other samples, for each sample. A former estimate, from
    other samples, is a better one.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      key: PRNG key.
      probes: number of directions ``n``, at least 2. From ``D (D + 1) / 2`` of them on,
        :func:`fomoh_jax.hessian` is exact for no more.
      baseline: a number :math:`c` for :math:`H_0 = c I`, 0 for none, or a symmetric
        array of shape ``[D, D]``.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      An :class:`Estimate` of arrays of shape ``[D, D]``, symmetric.

    Raises:
      TypeError: if ``fun`` does not return one real number, if ``primals`` holds
        complex numbers, if ``probes`` or ``chunk_size`` is no Python integer, if
        ``key`` is no PRNG key, or if ``baseline`` is not of real numbers.
      ValueError: if ``probes < 2``, ``chunk_size < 1``, nothing varies, or
        ``baseline`` has another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import sampled_hessian
      >>> f, x = lambda x: x[0] ** 2 * x[1], jnp.array([3.0, 2.0])
      >>> hessian, error = sampled_hessian(f, (x,), jax.random.key(0), 100_000)
      >>> print(bool(jnp.all(error < 0.1)))
      True
      >>> exact = jnp.array([[4.0, 6.0], [6.0, 0.0]])
      >>> print(bool(jnp.all(jnp.abs(hessian - exact) < 4 * error)))
      True

    References:
      Cobb et al., 2024, arXiv:2408.10419, the reference implementation, whose control
      variate is a baseline ``c I`` that is given.
    """
    name = "sampled_hessian"
    coordinates = all_varied(name, fun, primals)
    size, known = coordinates.size, None
    if baseline is not None:
        known = read_real("baseline", baseline, coordinates.dtype)
    if known is not None and known.ndim:
        if known.shape != (size, size):
            raise ValueError(
                f"baseline must be a number or an array of shape {[size, size]}, one "
                "row for each element of primals that varies; got shape "
                f"{list(known.shape)}."
            )
        known = (known + known.T) / 2
    value, error = _sampled(
        name, fun, primals, coordinates, key, probes, known, chunk_size, whole=True
    )
    return Estimate(value, error)


def sampled_diagonal(
    fun: Callable,
    primals: Sequence[Any],
    key: jax.Array,
    probes: int,
    *,
    baseline: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The diagonal of the Hessian from its curvature along random directions.

    .. math::
      H_{ii} \approx h_i + \frac1{2n} \sum_s \Big(v_s^\top H v_s
        - \sum_j h_j v_{sj}^2\Big) (v_{si}^2 - 1), \qquad v_s \sim N(0, I)

    As :func:`sampled_hessian`, with a diagonal baseline :math:`h`, in memory that grows
    with ``D`` and not its square. With :math:`K = H - \operatorname{diag}(h)` and
    :math:`t = \operatorname{tr} K` the variance is

    .. math:: \tfrac1n \left(5 K_{ii}^2 + 8 (K^2)_{ii} + 4 K_{ii} t + \|K\|_F^2
      + \tfrac12 t^2\right),

    much more than that of :func:`hutchinson_diagonal`, which takes reverse mode.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      key: PRNG key.
      probes: number of directions ``n``, at least 2. From ``D`` of them on,
        :func:`fomoh_jax.hessian_diagonal` is exact for no more.
      baseline: a number for all of :math:`h`, or a tuple like ``primals``, such as the
        value of a former estimate. By default the mean of the diagonal, found from the
        other samples.
      chunk_size: bound on memory: that many probes at a time. By default all.

    Returns:
      An :class:`Estimate` of tuples like ``primals``, with ``None`` for what is not of
      real floating-point numbers.

    Raises:
      TypeError: if ``fun`` does not return one real number, if ``primals`` holds
        complex numbers, if ``probes`` or ``chunk_size`` is no Python integer, if
        ``key`` is no PRNG key, or if ``baseline`` is not of real numbers or not like
        ``primals``.
      ValueError: if ``probes < 2``, ``chunk_size < 1``, nothing varies, or a shape of
        ``baseline`` does not match.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import sampled_diagonal
      >>> f, x = lambda x: jnp.sum(x**2), jnp.array([1.0, 2.0])
      >>> (diagonal,), _ = sampled_diagonal(f, (x,), jax.random.key(0), 4, baseline=2.0)
      >>> print(diagonal)
      [2. 2.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, the reference implementation.
    """
    name = "sampled_diagonal"
    coordinates = all_varied(name, fun, primals)
    known = None
    if isinstance(baseline, (tuple, list)):
        moved, known = along("baseline", name, fun, primals, baseline)
        if moved.size != coordinates.size:
            raise ValueError(
                "baseline must hold an array for every leaf of primals that varies; "
                "got None for some. Write zeros there."
            )
    elif baseline is not None:
        known = read_real("baseline", baseline, coordinates.dtype)
        if known.ndim:
            raise TypeError(
                "baseline must be a number or a tuple like primals; got an array of "
                f"shape {list(known.shape)}. For a single argument write (baseline,)."
            )
    parts = _sampled(
        name, fun, primals, coordinates, key, probes, known, chunk_size, whole=False
    )
    return Estimate(*map(coordinates.tree, parts))


def _sampled(
    name: str,
    fun: Callable,
    primals: Sequence[Any],
    coordinates: Coordinates,
    key: jax.Array,
    probes: int,
    baseline: jax.Array | None,
    chunk_size: int | None,
    whole: bool,
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard error of the Hessian, or of its diagonal.

    A baseline is a number, a diagonal ``[D]`` or a matrix ``[D, D]``.
    """
    n, size = check_probes(probes), coordinates.size
    check_key(key)
    keys = jax.random.split(key, n)

    def measured(keys):
        v = gaussian(keys, size, coordinates.dtype)
        value, _, curvature = directional_curvature(fun, primals, coordinates.tree(v))
        check_scalar(name, value)
        curvature = curvature.astype(coordinates.dtype)
        return jnp.stack([curvature, jnp.sum(v * v, 1)], 1)

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
        v = gaussian(keys, size, coordinates.dtype)
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
    curvature: jax.Array, lengths: jax.Array, baseline: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The multiple of the identity in the baseline: in the mean, and of each sample.

    ``lengths`` are ``|v|²``.
    """
    if baseline is None:
        # Of the other samples: with its own, the estimate would be biased. As a ratio
        # it is exact for a Hessian that is a multiple of the identity.
        others = lambda x: jnp.sum(x) - x
        levels = others(curvature) / others(lengths)
        return jnp.mean(levels), levels
    level = jnp.zeros_like(curvature, shape=()) if baseline.ndim else baseline
    return level, jnp.broadcast_to(level, curvature.shape)


def _quadratic(known: jax.Array | None, v: jax.Array) -> Any:
    """``vᵀ H₀ v`` of vectors ``[n, D]`` with a diagonal or a matrix."""
    if known is None:
        return 0
    if known.ndim == 1:
        return jnp.matmul(v * v, known, precision=lax.Precision.HIGHEST)
    return jnp.einsum("si,ij,sj->s", v, known, v, precision=lax.Precision.HIGHEST)


def _gram(weights: jax.Array, v: jax.Array) -> jax.Array:
    """``Σ_s weights_s v_s v_sᵀ``, symmetric to the last bit."""
    product = jnp.matmul(v.T * weights[None], v, precision=lax.Precision.HIGHEST)
    return (product + product.T) / 2


def _with_diagonal(matrix: jax.Array, diagonal: jax.Array) -> jax.Array:
    return jnp.fill_diagonal(matrix, diagonal, inplace=False)
