"""Solvers of the k×k system against closed forms and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from fomoh_jax import QuadraticModel, solvers
from fomoh_jax.solvers import Outcome, Solver, descents, searches
from fomoh_jax.solvers._solver import predicted_reduction
from tests.reference import normal, slow

SOLVERS = {
    "newton": solvers.newton(),
    "saddle_free": solvers.saddle_free(),
    "damped": solvers.damped(1e-3),
}
DESCENTS = {
    "newton": descents.newton(),
    "saddle_free": descents.saddle_free(),
    "damped": descents.damped(1e-2),
    "trust": descents.trust(2.0),
    "trust, scaled": descents.trust(2.0, scaled=True),
}
SEARCHES = {
    "constant": searches.constant(0.5),
    "gain_ratio": searches.gain_ratio(0.5),
    "gain_ratio, next": searches.gain_ratio(0.5, measured_on="next"),
    "self_tuning": searches.self_tuning(),
}
COMBINATIONS = {
    f"{descent}, {search}": Solver(DESCENTS[descent], SEARCHES[search])
    for descent in DESCENTS
    for search in SEARCHES
}


@jax.jit
def newton_step(model, gram):
    solver = SOLVERS["newton"]
    return solver.solve(model, gram, solver.init(len(gram)))[0]


def solve(solver, slope, curvature, gram=None, value=0.0):
    model = QuadraticModel(*map(jnp.asarray, (value, slope, curvature)))
    gram = jnp.eye(len(slope)) if gram is None else jnp.asarray(gram)
    return np.asarray(jax.jit(solver.solve)(model, gram, solver.init(len(gram)))[0])


def hyperplane(k, seed=0, indefinite=True):
    """Curvature, slope and Gram matrix of random directions in 6 dimensions."""
    hessian, v = np.asarray(normal(6, 6, seed=seed)), normal(6, k, seed=seed + 1)
    hessian = hessian + hessian.T if indefinite else hessian @ hessian.T
    v = np.asarray(v)
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
@pytest.mark.parametrize("k", [1, slow(3), 6])
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


def test_any_descent_and_any_search_minimise_a_bowl():
    scales = jnp.array([1.0, 3.0, 10.0])
    loss = lambda x: jnp.sum(scales * (x - 1) ** 2) / 2

    def minimised(solver):
        def step(carry, _):
            x, state, last = carry
            model = QuadraticModel(loss(x), scales * (x - 1), jnp.diag(scales))
            coefficients, state = solver.solve(model, jnp.eye(3), state, last)
            predicted = predicted_reduction(model, coefficients)
            last = Outcome(loss(x), predicted, loss(x) - loss(x - coefficients))
            taken, judged = solver.judge(last, state)
            if solver.search.looks_ahead:
                coefficients, state = jnp.where(taken, coefficients, 0), judged
            return (x - coefficients, state, last), None

        start = jnp.full(3, 2.0), solver.init(3), Outcome(*jnp.zeros(3))
        return jax.lax.scan(step, start, length=60)[0][0]

    ends = jax.jit(lambda: {n: minimised(s) for n, s in COMBINATIONS.items()})()
    for name, end in ends.items():
        np.testing.assert_allclose(end, 1, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", DESCENTS)
def test_a_smaller_size_leads_less_far_and_the_length_is_that_of_the_step(name):
    slope, curvature, gram, v = hyperplane(4)
    model = QuadraticModel(jnp.zeros(()), jnp.asarray(slope), jnp.asarray(curvature))
    zero, lengths = jnp.zeros(()), []
    descent = DESCENTS[name]
    take = jax.jit(descent.step)
    for size in (1e-6, 0.03, 0.5, 1.0):
        step, _ = take(
            model,
            jnp.asarray(gram),
            jnp.array(size),
            Outcome(zero, zero, zero),
            descent.init(4),
        )
        np.testing.assert_allclose(step.length, np.linalg.norm(v @ step.coefficients))
        assert 0 < step.size <= size * (1 + 1e-12)
        lengths.append(float(step.length))
    assert lengths == sorted(lengths) and lengths[0] < 1e-4 * lengths[-1]


def test_levenberg_and_marquardt_s_damping_follows_the_gain():
    solver = COMBINATIONS["damped, gain_ratio"]
    model = QuadraticModel(jnp.array(9.0), jnp.ones(1), jnp.ones((1, 1)))
    _, state = solver.solve(model, jnp.eye(1), solver.init(1))
    for actual, size in ((1.0, 1.0), (0.5, 0.5), (0.1, 0.125), (-1.0, 0.125)):
        outcome = Outcome(*map(jnp.asarray, (9.0, 1.0, actual)))
        taken, after = solver.judge(outcome, state)
        assert bool(taken) == (actual > 0)
        np.testing.assert_allclose(after.search.size, size)
        # (C + δ / size) κ = s
        step, _ = solver.solve(model, jnp.eye(1), after)
        np.testing.assert_allclose(step, 1 / (1 + 1e-2 / size))


def test_a_state_of_python_numbers_is_one_of_arrays():
    shrinking = solvers.Search(
        size=lambda state: state[0],
        learn=lambda last, state: (True, (state[0] / 2, state[1] + 1)),
        init=lambda: (1.0, 0),
    )
    solver = Solver(descents.damped(1.0), shrinking)
    state = solver.init(2)
    assert all(isinstance(x, jax.Array) and not x.weak_type for x in state.search)
    model = QuadraticModel(jnp.array(1.0), jnp.ones(2), jnp.eye(2))
    _, after = jax.jit(solver.solve)(model, jnp.eye(2), state)
    assert after.search[0] == 0.5 and after.search[1] == 1


def test_an_outcome_that_is_not_finite_tells_nothing():
    model = QuadraticModel(jnp.array(1.0), jnp.ones(2), jnp.eye(2))
    bad = Outcome(jnp.array(np.nan), jnp.array(np.nan), jnp.array(-np.inf))
    none = Outcome(*jnp.zeros(3))
    for solver in COMBINATIONS.values():
        _, state = solver.solve(model, jnp.eye(2), solver.init(2))
        after, same = (solver.solve(model, jnp.eye(2), state, x) for x in (bad, none))
        jax.tree.map(np.testing.assert_array_equal, after, same)
        taken, kept = solver.judge(bad, state)
        assert not taken
        jax.tree.map(np.testing.assert_array_equal, kept, state)


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_step_is_ever_non_finite(dtype):
    slope, curvature, gram, _ = hyperplane(3)
    zero, nan, huge = np.zeros((3, 3)), np.full((3, 3), np.nan), np.full((3, 3), 1e38)
    cases = [
        (0.0, slope, zero, gram),
        (0.0, np.zeros(3), zero, gram),
        (0.0, slope, np.ones((3, 3)), gram),
        (0.0, slope, zero, zero),
        (0.0, np.full(3, 1e38), 1e-38 * np.eye(3), gram),
        (0.0, slope, huge, huge),
        (0.0, slope, nan, gram),
        (0.0, np.full(3, np.inf), curvature, gram),
        (np.nan, slope, curvature, gram),
        (np.inf, slope, curvature, gram),
    ]
    values, slopes, *matrices = (jnp.asarray(np.stack(x), dtype) for x in zip(*cases))

    def steps(value, slope, curvature, gram):
        model = QuadraticModel(value, slope, curvature)
        return {
            name: solver.solve(model, gram, solver.init(3))
            for name, solver in (COMBINATIONS | SOLVERS).items()
        }

    found = jax.jit(jax.vmap(steps))(values, slopes, *matrices)
    for name, (step, state) in found.items():
        assert step.dtype == dtype
        np.testing.assert_array_equal(step[~np.isfinite(values)], 0, err_msg=name)
        for leaf in jax.tree.leaves((step, state)):
            assert np.all(np.isfinite(leaf)), name


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
    for call in (descents.trust, searches.constant):
        with pytest.raises(ValueError, match="must be positive; got 0"):
            call(0)
    with pytest.raises(TypeError, match=r"descent must be a Descent, such as newton"):
        Solver(searches.constant(), descents.newton())
    with pytest.raises(TypeError, match=r"search must be a Search.*forget to call"):
        Solver(descents.newton(), searches.constant)
    with pytest.raises(ValueError, match="gain_ratio needs 0 < initial"):
        searches.gain_ratio(2.0, largest=1.0)
    with pytest.raises(ValueError, match="fork is for a search that looks ahead"):
        solvers.Search(lambda state: 1.0, fork=lambda state: state)


def test_a_search_that_looks_ahead_is_never_told_what_is_not_finite():
    told = lambda last, state: (True, state + last.actual)
    search = solvers.Search(
        lambda state: 1.0, told, init=lambda: jnp.zeros(()), looks_ahead=True
    )
    solver = Solver(descents.newton(), search)
    model = QuadraticModel(jnp.array(3.0), jnp.ones(2), jnp.eye(2))
    none = Outcome(*jnp.zeros(3))
    for fall, taken, rose in ((0.5, True, -0.5), (np.nan, False, 4.0)):
        attempt, state = solver.attempt(
            model, jnp.eye(2), solver.init(2), none, lambda step: jnp.array(fall)
        )
        assert attempt.taken == taken
        np.testing.assert_array_equal(attempt.coefficients, 1)
        # By the value, and by what the model falls: 3 + 1.
        np.testing.assert_allclose(state.search, -rose)
        np.testing.assert_allclose(attempt.outcome.actual, -rose)
