"""Conjugate gradients against ``jnp.linalg.solve``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fomoh_jax import plans
from fomoh_jax.curvature import conjugate_gradients
from tests.curvature.problems import (
    GRADIENT,
    HESSIAN,
    PRIMALS,
    UNRAVEL,
    quadratic,
    symmetric,
    wave,
)
from tests.reference import assert_close, normal

POSITIVE = symmetric([0.1, 1.0, 2.0, 5.0, 8.0])
B = normal(5, seed=4)


@functools.partial(jax.jit, static_argnames=["maxiter", "plan"])
def solve(matrix, b=B, tol=1e-5, **options):
    x = jnp.zeros_like(b)
    return conjugate_gradients(quadratic(matrix), (x,), (b,), tol=tol, **options)


@pytest.mark.slow
def test_it_solves_a_positive_system_in_d_iterations():
    result = solve(POSITIVE, tol=1e-12)
    exact = jnp.linalg.solve(POSITIVE, B)
    np.testing.assert_allclose(result.solution[0], exact, rtol=1e-10)
    assert result.iterations <= 5 and not result.negative_curvature
    assert jnp.all(result.direction[0] == 0)


def test_the_residual_norm_is_that_of_the_solution():
    result = solve(POSITIVE, tol=0.0, maxiter=3)
    residual = B - POSITIVE @ result.solution[0]
    np.testing.assert_allclose(result.residual_norm, jnp.linalg.norm(residual))
    assert result.iterations == 3


def test_it_stops_at_the_tolerance():
    result = solve(POSITIVE, tol=0.5)
    assert result.residual_norm <= 0.5 * jnp.linalg.norm(B)
    assert result.iterations < 5


@pytest.mark.slow
def test_negative_curvature_is_met_and_its_direction_has_it():
    matrix = symmetric([-0.5, 1.0, 2.0, 5.0, 8.0])
    result = solve(matrix)
    assert result.negative_curvature
    (d,), (x,) = result.direction, result.solution
    assert d @ matrix @ d < -1e-3
    np.testing.assert_allclose(jnp.linalg.norm(d), 1)
    # What was reached before is a step downhill, to where the direction starts.
    assert quadratic(matrix)(x) - B @ x < 0 and result.iterations > 1


def test_negative_curvature_at_once_leaves_the_solution_zero():
    result = solve(-POSITIVE)
    assert result.negative_curvature and result.iterations == 1
    assert jnp.all(result.solution[0] == 0)
    assert_close(result.direction[0], B / jnp.linalg.norm(B))


@pytest.mark.slow
def test_negative_curvature_of_a_tree_with_integers():
    g = UNRAVEL(GRADIENT)
    result = jax.jit(lambda g: conjugate_gradients(wave, PRIMALS, (g, None)))(g)
    assert result.solution[1] is None
    d = ravel_pytree(result.direction)[0]
    assert result.negative_curvature and d @ HESSIAN @ d < 0


@pytest.mark.slow
def test_no_curvature_is_not_negative_and_takes_no_step():
    singular = symmetric([0.0, 0.0, 2.0, 5.0, 8.0])
    inside = singular @ normal(5, seed=6)
    result = solve(singular, inside, tol=1e-9)
    np.testing.assert_allclose(singular @ result.solution[0], inside, atol=1e-7)
    assert not result.negative_curvature
    for matrix in (singular, jnp.zeros((5, 5))):
        result = solve(matrix, tol=1e-12)
        assert not result.negative_curvature
        assert jnp.all(jnp.abs(result.solution[0]) < 1e3)


@pytest.mark.slow
@pytest.mark.optimised
def test_no_curvature_at_once_takes_no_step():
    # H has -6, 2 and 4 on its diagonal, and none along b.
    fun = lambda x: -3 * x[0] ** 2 + x[1] ** 2 + 2 * x[2] ** 2
    b = jnp.ones(3, jnp.float32)
    result = jax.jit(lambda b: conjugate_gradients(fun, (0 * b,), (b,)))(b)
    assert result.iterations == 1 and not result.negative_curvature
    assert jnp.all(result.solution[0] == 0)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_large_system_in_single_precision_is_solved_in_its_small_curvatures():
    d = 1000  # of which d times the rounding errors would be more than 1e-4
    diagonal = jnp.full(d, 1e-4, jnp.float32).at[0].set(1)
    b = jnp.ones(d, jnp.float32).at[0].set(1000)
    fun = lambda x: jnp.sum(diagonal * x**2) / 2
    solution = jax.jit(
        lambda b: conjugate_gradients(
            fun, (0 * b,), (b,), plan=plans.forward(250)
        ).solution[0]
    )(b)
    np.testing.assert_allclose(solution, b / diagonal, rtol=1e-3)


@pytest.mark.slow
def test_numbers_of_any_size_and_none_give_a_finite_solution():
    for size in (1e-200, 1e200):
        result = solve(POSITIVE, size * B, tol=1e-12)
        exact = size * jnp.linalg.solve(POSITIVE, B)
        np.testing.assert_allclose(result.solution[0], exact, rtol=1e-10)
    for matrix, b in ((POSITIVE, 0 * B), (jnp.nan * POSITIVE, B), (POSITIVE, B / 0)):
        assert jnp.all(solve(matrix, b).solution[0] == 0)


@pytest.mark.slow
def test_a_batch_of_systems_is_solved_each_to_its_own_end():
    matrices = jnp.stack([POSITIVE, symmetric([1.0] * 5), -POSITIVE])
    results = jax.vmap(lambda m: solve(m, tol=1e-12, plan=plans.forward(2)))(matrices)
    np.testing.assert_allclose(results.solution[0][1], B, rtol=1e-10)
    assert results.iterations[0] > 1 and results.iterations[1] == 1
    assert results.negative_curvature.tolist() == [False, False, True]
