"""Solvers of the k×k system against closed forms and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from fomoh_jax import QuadraticModel, solvers
from tests.reference import normal

SOLVERS = {
    "newton": solvers.newton(),
    "saddle_free": solvers.saddle_free(),
    "damped": solvers.damped(1e-3),
}


@jax.jit
def newton_step(model, gram):
    return SOLVERS["newton"].solve(model, gram, ())[0]


def solve(solver, slope, curvature, gram=None, value=0.0):
    model = QuadraticModel(*map(jnp.asarray, (value, slope, curvature)))
    gram = jnp.eye(len(slope)) if gram is None else gram
    return np.asarray(jax.jit(solver.solve)(model, gram, solver.init(len(slope)))[0])


def hyperplane(k, seed=0, indefinite=True):
    """Curvature, slope and Gram matrix of random directions in 6 dimensions."""
    hessian = normal(6, 6, seed=seed)
    hessian = hessian + hessian.T if indefinite else hessian @ hessian.T
    v = normal(6, k, seed=seed + 1)
    return v.T @ normal(6, seed=seed + 2), v.T @ hessian @ v, v.T @ v, v


def test_newton_solves_the_system():
    slope, curvature, gram, _ = hyperplane(4)
    expected = scipy.linalg.solve(curvature, slope, assume_a="sym")
    actual = solve(solvers.newton(), slope, curvature, gram)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_newton_adds_the_first_jitter_that_makes_a_singular_system_regular():
    curvature = np.diag([2.0, 0.0, -1e-3])  # the first jitter cancels the last
    slope = np.array([1.0, 2.0, 3.0])
    actual = solve(solvers.newton(jitter=1e-3, growth=10), slope, curvature)
    expected = np.linalg.solve(curvature + 1e-2 * np.eye(3), slope)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_newton_gives_up_after_the_attempts_and_takes_the_slope():
    curvature, slope = np.diag([0.0, -1e-3]), np.array([1.0, 2.0])
    solver = solvers.newton(jitter=1e-3, attempts=1)
    np.testing.assert_allclose(solve(solver, slope, curvature), slope)


def test_saddle_free_takes_the_absolute_value_of_the_curvature():
    slope, curvature, gram, _ = hyperplane(4)
    eigenvalues, basis = scipy.linalg.eigh(curvature, gram)
    assert eigenvalues.min() < 0 < eigenvalues.max()
    expected = basis @ ((basis.T @ slope) / np.abs(eigenvalues))
    actual = solve(solvers.saddle_free(), slope, curvature, gram)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_saddle_free_depends_on_the_hyperplane_alone():
    slope, curvature, gram, v = hyperplane(3)
    mix = normal(3, 3, seed=9)
    step = v @ solve(solvers.saddle_free(), slope, curvature, gram)
    mixed = solve(
        solvers.saddle_free(),
        mix.T @ slope,
        mix.T @ curvature @ mix,
        mix.T @ gram @ mix,
    )
    np.testing.assert_allclose(v @ mix @ mixed, step, rtol=1e-7)


def test_saddle_free_on_a_line_is_fomoh():
    step = solve(solvers.saddle_free(), [3.0], [[-2.0]], jnp.array([[5.0]]))
    np.testing.assert_allclose(step, [1.5])


def test_damped_is_newton_s_step_of_the_shifted_hessian():
    slope, curvature, gram, _ = hyperplane(4, indefinite=False)
    actual = solve(solvers.damped(0.5), slope, curvature, gram)
    np.testing.assert_allclose(
        actual, scipy.linalg.solve(curvature + 0.5 * gram, slope), rtol=1e-9
    )
    slope, curvature, gram, _ = hyperplane(4)
    lowest = scipy.linalg.eigh(curvature, gram)[0][0]
    actual = solve(solvers.damped(0.5), slope, curvature, gram)
    expected = scipy.linalg.solve(curvature + (0.5 - lowest) * gram, slope)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["saddle_free", "damped"])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_steps_go_downhill_whatever_the_curvature(name, k):
    for seed in range(5):
        slope, curvature, gram, _ = hyperplane(k, seed=10 * seed)
        assert slope @ solve(SOLVERS[name], slope, curvature, gram) > 0


@pytest.mark.optimised
@pytest.mark.parametrize("name", SOLVERS)
def test_directions_of_very_different_lengths_all_count(name):
    # A gradient near convergence beside long random directions, float32.
    slope, curvature, gram, v = hyperplane(3, indefinite=False)
    lengths = np.array([1e3, 1e3, 1e-3])
    as_float32 = lambda *xs: [jnp.asarray(x, "float32") for x in xs]
    scaled = as_float32(
        lengths * slope,
        lengths[:, None] * curvature * lengths,
        lengths[:, None] * gram * lengths,
    )
    step = v @ (lengths * solve(SOLVERS[name], *scaled, value=jnp.float32(0)))
    expected = v @ solve(SOLVERS[name], slope, curvature, gram)
    np.testing.assert_allclose(step, expected, rtol=2e-3)


def test_dependent_directions_share_the_step_of_one():
    slope, curvature, gram = np.full(2, 4.0), np.full((2, 2), 2.0), np.ones((2, 2))
    # On the line that both span, of slope 4 and curvature 2.
    for name, expected in (("saddle_free", 4 / 2), ("damped", 4 / (2 + 1e-3))):
        step = solve(SOLVERS[name], slope, curvature, jnp.asarray(gram))
        np.testing.assert_allclose(step.sum(), expected, rtol=1e-10)


@pytest.mark.optimised
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_step_is_ever_non_finite(name, dtype):
    slope, curvature, gram, _ = hyperplane(3)
    zero, nan, huge = np.zeros((3, 3)), np.full((3, 3), np.nan), np.full((3, 3), 1e38)
    cases = [
        (slope, zero, gram, 0.0),
        (np.zeros(3), zero, gram, 0.0),
        (slope, np.ones((3, 3)), gram, 0.0),
        (slope, zero, zero, 0.0),
        (np.full(3, 1e38), 1e-38 * np.eye(3), gram, 0.0),
        (slope, huge, huge, 0.0),
        (slope, nan, gram, 0.0),
        (np.full(3, np.inf), curvature, gram, 0.0),
        (slope, curvature, gram, np.nan),
        (slope, curvature, gram, np.inf),
    ]
    for slope_, curvature_, gram_, value in cases:
        arrays = [jnp.asarray(x, dtype) for x in (slope_, curvature_, gram_)]
        step = solve(SOLVERS[name], *arrays, value=jnp.asarray(value, dtype))
        assert np.all(np.isfinite(step)) and step.dtype == dtype
        if not np.isfinite(value):
            np.testing.assert_array_equal(step, 0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.integers(0, 20))
def test_newton_of_any_spectrum_is_finite(eigenvalues, seed):
    rotation = np.linalg.qr(normal(3, 3, seed=seed))[0]
    curvature = rotation @ np.diag(eigenvalues) @ rotation.T
    model = QuadraticModel(jnp.zeros(()), normal(3), jnp.asarray(curvature))
    assert np.all(np.isfinite(newton_step(model, jnp.eye(3))))


def test_arguments_out_of_range_are_refused():
    for arguments in ({"jitter": 0.0}, {"growth": 1.0}, {"attempts": 0}):
        with pytest.raises(ValueError, match="newton needs jitter > 0"):
            solvers.newton(**arguments)
    for damping in (0, -1.0, np.float32(0)):
        with pytest.raises(ValueError, match="damping must be positive"):
            solvers.damped(damping)
