"""Subspace iteration against ``jnp.linalg.eigh``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax import plans
from fomoh_jax.curvature import top_eigenvalues
from tests.curvature.problems import (
    HESSIAN,
    PRIMALS,
    SIZE,
    quadratic,
    symmetric,
    wave,
)
from tests.reference import normal

KEY = jax.random.key(0)
EIGENVALUES = [9.0, -6.0, 4.0, 1.0, 0.5, -0.2, 0.1, 0.0]
MATRIX = symmetric(EIGENVALUES)


@functools.partial(jax.jit, static_argnames=["k", "maxiter", "oversampling"])
def of(matrix, k, **options):
    x = normal(len(matrix))
    return top_eigenvalues(quadratic(matrix), (x,), KEY, k, **options)


@pytest.mark.slow
def test_the_largest_of_either_sign_are_exact():
    pairs = of(MATRIX, 3, tol=1e-7, oversampling=2)
    np.testing.assert_allclose(pairs.values, EIGENVALUES[:3], rtol=1e-12)
    (vectors,) = pairs.vectors
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-12)
    residuals = jnp.linalg.norm(vectors @ MATRIX - pairs.values[:, None] * vectors, 2)
    assert residuals <= 1e-5 and jnp.all(pairs.residuals <= 9e-7)
    assert pairs.iterations < 30


@pytest.mark.slow
def test_the_residual_bounds_the_error_before_it_has_converged():
    pairs = of(MATRIX, 3, maxiter=2, tol=0.0, oversampling=0)
    assert pairs.iterations == 2
    nearest = jnp.abs(pairs.values[:, None] - jnp.array(EIGENVALUES)).min(1)
    assert jnp.all(nearest <= pairs.residuals) and jnp.max(pairs.residuals) > 1e-3


@pytest.mark.slow
def test_a_block_of_all_directions_is_done_in_one_iteration():
    pairs = jax.jit(
        lambda key: top_eigenvalues(wave, PRIMALS, key, SIZE, plan=plans.forward(4))
    )(KEY)
    exact = sorted(jnp.linalg.eigvalsh(HESSIAN).tolist(), key=lambda x: -abs(x))
    np.testing.assert_allclose(pairs.values, exact, rtol=1e-10)
    assert pairs.iterations == 1
    params, powers = pairs.vectors
    assert powers is None
    assert jax.tree.map(jnp.shape, params) == {"b": (SIZE, 2), "w": (SIZE, 2, 2)}


@pytest.mark.slow
@pytest.mark.optimised
def test_curvature_of_any_size_in_single_precision():
    numbers = jnp.array([5, -3, 2, 1, 0.5, 0.2, 0.1, 0.05], jnp.float32)
    fun = lambda x, scale: jnp.sum(scale * numbers * x**2) / 2
    of_scale = jax.jit(
        lambda scale: top_eigenvalues(lambda x: fun(x, scale), (numbers,), KEY, 2)
    )
    for scale in jnp.array([1e-20, 1e30], jnp.float32):
        pairs = of_scale(scale)
        np.testing.assert_allclose(pairs.values / scale, [5, -3], rtol=1e-4)
        residuals = pairs.residuals / scale
        assert jnp.all(residuals <= 1e-3) and jnp.any(residuals > 0)


@pytest.mark.slow
def test_no_curvature_has_eigenvalues_of_zero():
    pairs = of(jnp.zeros((4, 4)), 2)
    assert jnp.all(pairs.values == 0) and pairs.iterations == 1
