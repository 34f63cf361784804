"""Newton's step from a Hessian that is known, estimated, or no good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fomoh_jax import hessian
from fomoh_jax.curvature import Estimate, newton_step, sampled_hessian
from tests.curvature.problems import (
    GRADIENT,
    HESSIAN,
    PRIMALS,
    quadratic,
    symmetric,
    wave,
)
from tests.reference import normal

X = normal(5, seed=2)
POSITIVE = symmetric([0.5, 1.0, 2.0, 5.0, 8.0])


@jax.jit
def step_of(matrix, error, x=X, centre=0.0):
    """On a quadratic function around ``centre``."""
    fun = lambda x: quadratic(POSITIVE)(x - centre)
    return newton_step(fun, (x,), Estimate(matrix, error))[0]


def known(matrix):
    return Estimate(matrix, jnp.zeros_like(matrix))


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_known_hessian_gives_newton_s_step(chunk_size):
    fun = lambda x: quadratic(POSITIVE)(x - 1)
    (step,) = jax.jit(
        lambda x: newton_step(fun, (x,), known(POSITIVE), chunk_size=chunk_size)
    )(X)
    np.testing.assert_allclose(X + step, 1, rtol=1e-10)


@pytest.mark.slow
def test_negative_curvature_is_left_downhill():
    params, powers = PRIMALS
    exact = hessian(wave)(params, powers)
    zeros = jax.tree.map(jnp.zeros_like, exact)
    step = jax.jit(lambda *h: newton_step(wave, PRIMALS, Estimate(*h)))(exact, zeros)
    values, axes = jnp.linalg.eigh(HESSIAN)
    assert values[0] < 0 and step[1] is None
    expected = -axes @ (axes.T @ GRADIENT / jnp.abs(values))
    np.testing.assert_allclose(ravel_pytree(step)[0], expected, rtol=1e-9)


@pytest.mark.slow
def test_from_many_samples_it_is_nearly_the_exact_step():
    fun, keys = quadratic(POSITIVE), jax.random.split(jax.random.key(0), 20)

    def distance(key):
        estimate = sampled_hessian(fun, probes=5000)(key, X)
        return jnp.linalg.norm(X + newton_step(fun, (X,), estimate)[0])

    distances = jax.jit(lambda keys: jax.lax.map(distance, keys))(keys)
    assert jnp.median(distances) < 0.25 * jnp.linalg.norm(X)


@pytest.mark.slow
def test_curvature_within_the_noise_counts_as_the_noise():
    tiny = symmetric([1e-9, 1.0, 2.0, 5.0, 8.0])
    step = step_of(tiny, jnp.full((5, 5), 0.1))
    noise = 2 * 0.1 * 5**0.5
    assert jnp.linalg.norm(step) <= jnp.linalg.norm(POSITIVE @ X) / noise


@pytest.mark.optimised
def test_curvature_of_any_size_has_its_step_in_single_precision():
    def step(size):
        fun = lambda x: size * jnp.sum((x - 1) ** 2)
        hessian = 2 * size * jnp.eye(3, dtype=size.dtype)
        return newton_step(
            fun, (jnp.zeros_like(hessian[0]),), Estimate(hessian, hessian)
        )

    for size in jnp.array([1e-24, 1, 1e25], jnp.float32):
        # The noise is twice the curvature.
        np.testing.assert_allclose(jax.jit(step)(size)[0], 0.5, rtol=1e-6)


@pytest.mark.slow
def test_the_step_is_finite_whatever_comes():
    flat, bad = jnp.zeros((5, 5)), POSITIVE.at[0, 0].set(jnp.nan)
    for estimate in ((flat, flat), (bad, flat), (POSITIVE, bad), (bad / 0, flat)):
        assert jnp.all(step_of(*estimate) == 0)
    assert jnp.all(step_of(POSITIVE, flat, X / 0) == 0)
    assert jnp.all(step_of(1e-300 * POSITIVE, flat, 1e300 * X) == 0)
