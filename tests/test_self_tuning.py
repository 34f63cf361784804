"""The step size that follows from the path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import QuadraticModel, directions, scale_by_hyperplane, solvers
from tests.programs import rosenbrock
from tests.reference import normal


def model(value, slope, curvature):
    return QuadraticModel(*map(jnp.asarray, (value, slope, curvature)))


def run(tx, loss, x, steps, batches=None):
    """The iterate, the last state, and the step sizes."""

    def step(carry, batch):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=loss, batch=batch)
        x = optax.apply_updates(x, updates)
        return (x, state), state[0].solver_state.step_size

    batches = jnp.zeros(steps) if batches is None else batches
    scan = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), batches))
    (x, state), sizes = scan(x)
    return x, state, np.asarray(sizes)


def test_the_factor_is_the_minimum_along_the_path():
    solver = solvers.self_tuning()
    slope, curvature = np.array([1.0, -3.0]), np.diag([1.0, 2.0])
    _, state = solver.solve(model(1.0, slope, curvature), jnp.eye(2), solver.init(2))
    np.testing.assert_allclose(state.factor, 1 + 3 / 2)


@pytest.mark.parametrize("size", [1.0, 0.25])
def test_a_step_is_saddle_free_damped_and_shortened_by_the_root_of_the_size(size):
    v = normal(7, 4)
    hessian = normal(7, 7, seed=1)
    hessian += hessian.T
    slope, curvature, gram = v.T @ normal(7, seed=2), v.T @ hessian @ v, v.T @ v
    # The path says: as it is.
    slope, curvature = np.array(slope), np.array(curvature)
    slope[-1], curvature[-1, -1] = 0.0, 1.0
    solver = solvers.self_tuning(initial=size)
    step, _ = solver.solve(model(1.0, slope, curvature), gram, solver.init(4))
    assert step[-1] == 0
    plane = (slope[:3], curvature[:3, :3], gram[:3, :3])
    if size == 1.0:
        free = solvers.saddle_free()
        expected, _ = free.solve(model(1.0, *plane[:2]), plane[2], free.init(3))
    else:
        white = np.linalg.inv(np.linalg.cholesky(plane[2]))
        eigenvalues, axes = np.linalg.eigh(white @ plane[1] @ white.T)
        bent = np.abs(eigenvalues) + np.abs(eigenvalues).mean()  # 1 / √¼ - 1 = 1
        expected = white.T @ axes @ (axes.T @ white @ plane[0] / bent) / 2
    np.testing.assert_allclose(step[:3], expected, rtol=1e-8)


def test_without_noise_the_step_size_goes_to_one_and_the_method_to_newton_s():
    tx = fomoh_jax.fomoh_kd(4)
    x, _, sizes = run(tx, rosenbrock_of_batch, jnp.array([0.2, -1.0, 0.5, 2.0]), 80)
    assert sizes[0] < 0.21 and sizes[-1] > 0.9
    assert rosenbrock(x) < 1e-20


def rosenbrock_of_batch(x, batch):
    return rosenbrock(x) + 0 * batch


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
    solver = solvers.self_tuning(initial=1.0)
    first = model(1.0, np.array([1.0, 0.0]), np.eye(2))
    step, state = solver.solve(first, jnp.eye(2), solver.init(2))
    np.testing.assert_allclose(jnp.abs(step[0]), 1.0)
    huge = model(1.0, np.array([100.0, 0.0]), np.eye(2))
    step, _ = solver.solve(huge, jnp.eye(2), state)
    np.testing.assert_allclose(jnp.abs(step[0]), 2.0)


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was():
    solver = solvers.self_tuning()
    _, before = solver.solve(
        model(1.0, np.ones(2), np.eye(2)), jnp.eye(2), solver.init(2)
    )
    bad = model(np.nan, np.ones(2), np.eye(2))
    step, after = solver.solve(bad, jnp.eye(2), before)
    np.testing.assert_array_equal(step, 0)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_the_alias_needs_no_argument_but_k_and_the_path_comes_last():
    state = fomoh_jax.fomoh_kd(3).init(jnp.zeros(5))
    assert state[0].model.slope.shape == (4,)
    assert isinstance(state[0].solver_state, solvers.SelfTuningState)
    assert isinstance(state[0].directions_state[1], directions.AverageState)


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
    with pytest.raises(ValueError, match=r"horizon must be in \(0, 1\]"):
        solvers.self_tuning(horizon=0.0)
    with pytest.raises(ValueError, match="at least one direction before its path"):
        solvers.self_tuning().init(1)


def test_a_first_step_of_nothing_does_not_hold_the_others_back():
    loss = lambda x, batch: batch * jnp.sum((x - 1) ** 2)
    batches = jnp.ones(150).at[0].set(0.0)
    x, _, _ = run(fomoh_jax.fomoh_kd(2), loss, jnp.zeros(4), 150, batches)
    np.testing.assert_allclose(x, 1.0, atol=1e-3)


@pytest.mark.parametrize("solver", [solvers.self_tuning(), solvers.trust_region()])
def test_the_first_state_can_be_donated(solver):
    tx = fomoh_jax.fomoh_kd(2, solver=solver)
    step = lambda x, state: tx.update(None, state, x, value_fn=lambda x: jnp.sum(x**2))
    x = jnp.ones(4)
    updates, _ = jax.jit(step, donate_argnums=(0, 1))(x, tx.init(x))
    assert np.all(np.isfinite(updates))
