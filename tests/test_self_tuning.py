"""The step size that follows from the path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import QuadraticModel, directions, scale_by_hyperplane, solvers
from fomoh_jax.solvers import Outcome, searches
from tests.programs import rosenbrock
from tests.reference import normal


def model(value, slope, curvature):
    return QuadraticModel(*map(jnp.asarray, (value, slope, curvature)))


def outcome(value, predicted, actual):
    return Outcome(*map(jnp.asarray, (value, predicted, actual)))


def run(tx, loss, x, steps, batches=None):
    """The iterate, the last state, and the step sizes."""

    def step(carry, batch):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=loss, batch=batch)
        x = optax.apply_updates(x, updates)
        return (x, state), state[0].solver_state.search.step_size

    batches = jnp.zeros(steps) if batches is None else batches
    scan = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), batches))
    (x, state), sizes = scan(x)
    return x, state, np.asarray(sizes)


@pytest.mark.slow
def test_the_gain_is_actual_over_predicted_reduction_from_their_running_averages():
    solver = solvers.self_tuning()
    state, last = solver.init(1), None
    losses = 5 - np.sqrt(np.arange(9.0)) + 0.3 * normal(9)
    predictions = [0.0]
    for loss, following in zip(losses, [*losses[1:], np.nan]):
        bowl = model(loss, 2 * np.ones(1), np.eye(1))
        step, state = solver.solve(bowl, jnp.eye(1), state, last)
        predicted = float(2 * step[0] - step[0] ** 2 / 2)
        predictions.append(predictions[-1] + predicted)
        last = outcome(loss, predicted, loss - following)
    gain = np.divide(*state.search.averaged)

    def below_the_running_average(sequence):
        mean, far = 0.0, []
        for t, x in enumerate(sequence):
            mean += (x - mean) / (1 + 0.2 * t)
            far.append(mean - x)
        return np.mean(far)

    actual = below_the_running_average(losses)
    predicted = below_the_running_average(-np.array(predictions[:-1]))
    np.testing.assert_allclose(gain, actual / predicted, rtol=1e-10)
    assert 0.01 < abs(gain) < 1.99  # not at a bound


@pytest.mark.slow
def test_the_best_step_size_is_known_from_the_gain_where_slopes_are_noisy():
    # A bowl with noise in its slope, of which half of s^2 + sigma^2 is signal.
    size, slope, noise = 0.3, 2.0, 2.0
    eps = jax.random.normal(jax.random.key(0), (400_000,)) * noise
    step = size * (slope + eps)
    predicted = jnp.mean(step * (slope + eps) - step**2 / 2)
    actual = jnp.mean(step * slope - step**2 / 2)
    best = actual / predicted * (1 - size / 2) + size / 2
    np.testing.assert_allclose(best, slope**2 / (slope**2 + noise**2), atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gain, aim", [(1.0, 0.85), (0.6, 0.624**0.6), (0.2, 0.31), (0.0, 1.25 * 0.06)]
)
def test_the_step_size_goes_to_a_power_of_the_best_and_falls_where_none_is_won(
    gain, aim
):
    search = searches.self_tuning(initial=0.12)
    first = search.init()._replace(steps=jnp.array(10_000, jnp.int32))
    known = {"averaged": jnp.array([gain, 1.0]), "mean_step_size": jnp.array(0.12)}
    nothing = outcome(1.0, 0.0, 0.0)
    _, state = search.learn(nothing, first._replace(**known))
    # One step up by a tenth at most, or down by a fiftieth.
    np.testing.assert_allclose(
        search.size(state), np.clip(aim, 0.1176, 0.132), rtol=1e-6
    )
    for _ in range(60):
        _, state = search.learn(nothing, state._replace(**known))
    np.testing.assert_allclose(search.size(state), aim, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1.0, 0.25])
def test_a_step_is_saddle_free_damped_and_shortened_by_the_root_of_the_size(size):
    v = normal(7, 3)
    hessian = normal(7, 7, seed=1)
    hessian += hessian.T
    slope, curvature, gram = v.T @ normal(7, seed=2), v.T @ hessian @ v, v.T @ v
    # Aiming higher, it grows as fast as it may: not at all.
    solver = solvers.self_tuning(initial=size, growth=1e-12)
    state, last = solver.init(3), None
    if size == 1.0:  # which only predictions that have come true allow
        after = {"steps": jnp.array(9), "streak": jnp.array(9)}
        state = state._replace(search=state.search._replace(**after))
        last = outcome(1.5, 0.5, 0.5)
    step, _ = solver.solve(model(1.0, slope, curvature), gram, state, last)
    if size == 1.0:
        free = solvers.saddle_free()
        expected, _ = free.solve(model(1.0, slope, curvature), gram, free.init(3))
    else:
        white = np.linalg.inv(np.linalg.cholesky(gram))
        eigenvalues, axes = np.linalg.eigh(white @ curvature @ white.T)
        damped = np.abs(eigenvalues) + np.abs(eigenvalues).mean()  # 1 / √¼ - 1 = 1
        expected = white.T @ axes @ (axes.T @ white @ slope / damped) / 2
    np.testing.assert_allclose(step, expected, rtol=1e-8)


@pytest.mark.slow
def test_without_noise_the_step_size_goes_to_one_and_the_method_to_newton_s():
    tx = fomoh_jax.fomoh_kd(4)
    x, _, sizes = run(tx, rosenbrock_of_batch, jnp.array([0.2, -1.0, 0.5, 2.0]), 80)
    assert sizes[0] < 0.06 and sizes.max() == 1
    assert rosenbrock(x) < 1e-20


def rosenbrock_of_batch(x, batch):
    return rosenbrock(x) + 0 * batch


@pytest.mark.sampled
@pytest.mark.parametrize("k", [1, 8])
def test_noise_of_the_batches_makes_steps_small_and_its_absence_large(k):
    # A quadratic whose minimum moves with the batch: at the end, all is noise.
    curvature = jnp.linspace(0.5, 2.0, 30)

    def loss(x, batch):
        return jnp.sum(curvature * (x - batch) ** 2) / 2

    noise = jax.random.normal(jax.random.key(0), (1500, 30))
    tx = fomoh_jax.fomoh_kd(k)
    x, _, noisy = run(tx, loss, 10 * jnp.ones(30), 1500, noise)
    _, _, quiet = run(tx, loss, 10 * jnp.ones(30), 1500, 0 * noise)
    assert noisy[-100:].mean() < 0.3 * quiet[-100:].mean()
    # Steps of size 1 would stay as far away as the noise is; these come closer.
    assert jnp.sum(curvature * x**2) < 0.5 * jnp.sum(curvature)


def test_a_step_is_at_most_twice_as_long_as_those_before_it():
    solver = solvers.self_tuning(initial=0.85)
    first = model(1.0, np.array([1.0]), np.eye(1))
    step, state = solver.solve(first, jnp.eye(1), solver.init(1))
    np.testing.assert_allclose(jnp.abs(step), 0.85)
    huge = model(1.0, np.array([100.0]), np.eye(1))
    step, _ = solver.solve(huge, jnp.eye(1), state)
    np.testing.assert_allclose(jnp.abs(step), 1.7)


def test_while_predictions_come_true_lengths_may_double_and_no_more():
    solver = solvers.self_tuning(initial=0.85)
    state, last, lengths = solver.init(1), None, []
    for i in range(9):
        # As predicted each time; then a model that has hardly any curvature.
        curvature = np.eye(1) if i < 6 else 1e-6 * np.eye(1)
        here = model(1.0, np.ones(1), curvature)
        step, state = solver.solve(here, jnp.eye(1), state, last)
        predicted = step @ here.slope - step @ here.curvature @ step / 2
        last = Outcome(here.value, predicted, predicted)
        lengths.append(float(jnp.abs(step)[0]))
    np.testing.assert_allclose(lengths[4:], [0.85, 1, 2, 4, 8])


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was():
    solver = solvers.self_tuning()
    _, before = solver.solve(
        model(1.0, np.ones(2), np.eye(2)), jnp.eye(2), solver.init(2)
    )
    bad = model(np.nan, np.ones(2), np.eye(2))
    step, after = solver.solve(bad, jnp.eye(2), before)
    np.testing.assert_array_equal(step, 0)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_the_alias_needs_no_argument_but_k():
    state = fomoh_jax.fomoh_kd(1).init(jnp.zeros(5))
    assert isinstance(state[0].solver_state.search, searches.SelfTuningState)


@pytest.mark.slow
@pytest.mark.optimised
def test_it_runs_in_float32_under_float64_and_under_vmap():
    tx = scale_by_hyperplane(directions.gaussian(2), solvers.self_tuning())
    x = jnp.ones((3, 4), "float32")
    loss = lambda x: jnp.sum(x**4)

    def one(x):
        def step(state, _):
            updates, state = tx.update(None, state, x, value_fn=loss)
            return state, updates

        return jax.lax.scan(step, tx.init(x), length=3)[1]

    assert jax.vmap(one)(x).dtype == jnp.float32


def test_arguments_out_of_range_are_refused():
    for arguments in ({"initial": 0.0}, {"initial": 2.0}, {"growth": 0.0}):
        with pytest.raises(ValueError, match="self_tuning needs 0 < initial"):
            solvers.self_tuning(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0.0, 1e-6])
def test_a_first_step_of_next_to_nothing_does_not_hold_the_others_back(first):
    # A plateau: the slope of the first batches is small, and the curvature is not.
    loss = lambda x, batch: jnp.sum((x - 1) ** 2) / 2 - (1 - batch) * jnp.sum(x - 0.0)
    x = jnp.zeros(4)
    batches = jnp.ones(150).at[0].set(first)
    x, _, _ = run(fomoh_jax.fomoh_kd(2), loss, x, 150, batches)
    np.testing.assert_allclose(x, 1.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [solvers.self_tuning(), solvers.trust_region()])
def test_the_first_state_can_be_donated(solver):
    tx = fomoh_jax.fomoh_kd(2, solver=solver)
    step = lambda x, state: tx.update(None, state, x, value_fn=lambda x: jnp.sum(x**2))
    x = jnp.ones(4)
    updates, _ = jax.jit(step, donate_argnums=(0, 1))(x, tx.init(x))
    assert np.all(np.isfinite(updates))
