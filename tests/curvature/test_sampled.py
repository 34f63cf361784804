"""The sampled Hessian and diagonal against ``jax.hessian`` and their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fomoh_jax import hessian
from fomoh_jax.curvature import Estimate, sampled_diagonal, sampled_hessian
from tests.curvature.problems import (
    DIAGONAL,
    HESSIAN,
    PRIMALS,
    SIZE,
    UNRAVEL,
    assert_unbiased,
    assert_variance,
    quadratic,
    repeat,
    symmetric,
    wave,
)
from tests.reference import assert_close, assert_symmetric, normal, slow

KEY = jax.random.key(0)
N = 32
X = normal(SIZE)
# A former estimate: near, and of other samples.
NEAR = HESSIAN + 0.1 * symmetric(normal(SIZE, seed=5))
MEAN = jnp.trace(HESSIAN) / SIZE


def of_wave(probes=N, **options):
    """An estimate of its Hessian as one matrix, of a key alone."""
    flat, unravel = ravel_pytree(PRIMALS[0])
    fun = lambda x: wave(unravel(x), PRIMALS[1])
    estimate = sampled_hessian(fun, probes=probes, **options)
    return lambda key: estimate(key, flat)


def variance_of(h):
    """Of each element of one sample, by Wick's theorem; ``h`` is what is left of H."""
    d, squares, trace = jnp.diagonal(h), jnp.diagonal(h @ h), jnp.trace(h)
    sums = lambda x: x[:, None] + x
    common = (jnp.sum(h**2) + trace**2 / 2) / 2
    off = 3 * h**2 + 2 * jnp.outer(d, d) + 2 * sums(squares) + trace * sums(d) + common
    own = 5 * d**2 + 8 * squares + 4 * trace * d + 2 * common
    return jnp.where(jnp.eye(len(h), dtype=bool), own, off)


@functools.cache
def repeated(shape):
    """Values and errors of many estimates as a function of a baseline of a shape."""

    def estimates(baseline):
        return repeat(of_wave(baseline=baseline))

    return jax.jit(estimates).lower(jnp.zeros(shape)).compile()


@pytest.mark.slow
@pytest.mark.parametrize(
    "baseline", [0.0, slow(2.0), NEAR], ids=["none", "number", "matrix"]
)
def test_a_baseline_leaves_no_bias_and_the_variance_of_what_it_leaves(baseline):
    baseline = jnp.asarray(baseline)
    values, errors = repeated(baseline.shape)(baseline)
    assert_unbiased(values, HESSIAN.ravel())
    rest = HESSIAN - (baseline if baseline.ndim else baseline * jnp.eye(SIZE))
    # The samples have heavy tails: a product of four normal numbers.
    assert_variance(values, errors, variance_of(rest).ravel() / N, rtol=0.25)


@pytest.mark.slow
def test_by_default_the_baseline_is_the_best_multiple_of_the_identity():
    values, errors = repeat(of_wave())
    assert_unbiased(values, HESSIAN.ravel())
    variance = lambda c: variance_of(HESSIAN - c * jnp.eye(SIZE))
    # The mean of the others is not exact, and costs a little: O(1 / N).
    best = variance(MEAN).ravel() / N
    assert_variance(values, errors, best * (1 + 2 / N), rtol=0.25)
    total = lambda c: jnp.sum(variance(c))
    assert total(MEAN) < min(total(0.0), total(MEAN - 0.1), total(MEAN + 0.1))
    assert jnp.sum(np.var(values, axis=0)) < 0.8 * total(0.0) / N


@pytest.mark.slow
def test_the_noise_that_newton_s_step_reckons_with_is_the_norm_of_the_error():
    values, errors = (
        x.reshape(-1, SIZE, SIZE) for x in repeated(())(jnp.asarray(MEAN))
    )
    noise = 2 * jnp.sqrt(jnp.max(jnp.sum(errors**2, axis=2), axis=1))
    ratios = jnp.linalg.norm(values - HESSIAN, 2, axis=(1, 2)) / noise
    assert 0.6 < jnp.median(ratios) < 1
    assert jnp.mean(ratios > 1.5) < 0.05


def test_the_total_variance_is_that_of_the_docstring():
    k = HESSIAN
    formula = (SIZE**2 + 9 * SIZE + 16) / 4 * (2 * jnp.sum(k**2) + jnp.trace(k) ** 2)
    total = jnp.sum(variance_of(k))
    np.testing.assert_allclose(total, formula - jnp.sum(k**2), rtol=1e-12)


@pytest.mark.slow
def test_an_exact_baseline_leaves_nothing_to_chance():
    values, errors = repeated(HESSIAN.shape)(HESSIAN)
    np.testing.assert_allclose(
        values, np.broadcast_to(HESSIAN.ravel(), values.shape), atol=1e-10
    )
    np.testing.assert_allclose(errors, 0, atol=1e-10)
    # So does the default, for a multiple of the identity.
    multiple = 3 * jnp.eye(SIZE)
    default = jax.jit(sampled_hessian(quadratic(multiple), probes=4))
    assert_close(default(KEY, X), Estimate(multiple, jnp.zeros_like(multiple)))


def test_blocks_are_where_the_exact_hessian_has_them():
    """Also those of a baseline, which leaves nothing to chance."""
    exact = jax.jit(hessian(wave))(*PRIMALS)
    one = jax.jit(lambda h: sampled_hessian(wave, probes=2, baseline=h)(KEY, *PRIMALS))
    assert_close(one(exact).value, exact)


def test_each_round_on_the_estimate_before_it_is_nearer():
    rounds = jax.jit(lambda key, h: of_wave(1000, baseline=h)(key).value)
    value, distances = jnp.zeros((SIZE, SIZE)), []
    for key in jax.random.split(KEY, 20):
        value = rounds(key, value)
        distances.append(jnp.max(jnp.abs(value - HESSIAN)))
    assert distances[-1] < 1e-6 * distances[0]


@pytest.mark.slow
@pytest.mark.optimised
def test_chunks_and_the_diagonal_alone_are_of_the_same_samples():
    def estimates(key):
        diagonal = sampled_diagonal(wave, probes=20, chunk_size=20)(key, *PRIMALS)
        return of_wave(20)(key), of_wave(20, chunk_size=7)(key), diagonal

    whole, chunked, diagonal = jax.jit(estimates)(KEY)
    assert_close(chunked, whole)
    for estimate in (whole, chunked):
        assert_symmetric(estimate)
    assert_close(diagonal, Estimate(*(UNRAVEL(jnp.diagonal(x)) for x in whole)))


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("baseline", [None, 2.0])
def test_the_error_is_that_of_curvature_of_any_size(baseline):
    x, sizes = jnp.ones(3, jnp.float32), jnp.array([2.0**-80, 1, 2.0**83], jnp.float32)
    fun = lambda x, size: size * (x[0] * x[1] + 3 * x[1] * x[2])

    def of_size(size):
        known = None if baseline is None else baseline * size
        return sampled_hessian(fun, probes=4, baseline=known)(KEY, x, size)

    tiny, one, huge = map(jax.jit(of_size), sizes)
    assert jnp.all(one.standard_error > 0)
    for found, size in ((tiny, sizes[0]), (huge, sizes[2])):
        assert_close(found, jax.tree.map(lambda x, size=size: size * x, one))


def test_a_former_diagonal_is_a_baseline():
    former = UNRAVEL(DIAGONAL + 0.1 * normal(SIZE))
    estimate = sampled_diagonal(wave, probes=N, baseline=former)
    values, errors = repeat(lambda key: estimate(key, *PRIMALS))
    assert_unbiased(values, DIAGONAL)
    rest = HESSIAN - jnp.diag(ravel_pytree(former)[0])
    expected = jnp.diagonal(variance_of(rest)) / N
    assert_variance(values, errors, expected, rtol=0.15)
