"""Losses without curvature: the minimum is where a linear programme says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import fomoh_jax as fj
from fomoh_jax import QuadraticModel, solvers
from fomoh_jax.solvers import Outcome
from tests.reference import partly_slow

N, D = 64, 3
X = np.random.default_rng(0).standard_normal((N, D))
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.3 * np.random.default_rng(1).standard_t(3, N)


def mae(w):
    return jnp.mean(jnp.abs(X @ w - Y))


def hinge(w):
    return jnp.mean(jax.nn.relu(1 - np.sign(Y) * (X @ w)))


def quantile(w):
    error = Y - X @ w
    return jnp.mean(jnp.maximum(0.9 * error, -0.1 * error))


LOSSES = (mae, hinge, quantile)


def least(above, below, x, y):
    """The least mean of ``max(above * e, below * e)`` over ``w``, ``e = y - x w``."""
    eye = np.eye(N)
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(D), np.full(N, above / N), np.full(N, -below / N)]),
        A_eq=np.hstack([x, eye, -eye]),
        b_eq=y,
        bounds=[(None, None)] * D + [(0, None)] * (2 * N),
    )
    return found.fun


# A hinge is zero from 1 on: an error below zero costs nothing.
MINIMA = np.array(
    [
        least(1, -1, X, Y),
        least(1, 0, np.sign(Y)[:, None] * X, np.ones(N)),
        least(0.9, -0.1, X, Y),
    ]
)

OPTIMISERS = {
    "fomoh_kd(2)": fj.fomoh_kd(2, key=1),
    "fomoh_kd(5), more than there are parameters": fj.fomoh_kd(5, key=1),
    "fomoh_kd(2, 1), saddle_free": fj.fomoh_kd(
        2, learning_rate=1.0, solver=solvers.saddle_free(), key=1
    ),
    "fomoh(0.3)": fj.fomoh(0.3, key=1),
    "fomoh_bp(0.3)": fj.fomoh_bp(0.3),
    "fomoh_kd(2), trust_region": fj.fomoh_kd(2, solver=solvers.trust_region(), key=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(OPTIMISERS))
def test_a_loss_without_curvature_is_minimised(name):
    tx = OPTIMISERS[name]

    def end(which):
        loss = lambda w: jnp.stack([f(w) for f in LOSSES])[which]

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
            return (optax.apply_updates(w, updates), state), None

        start = jnp.zeros(D)
        (w, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=400)
        return loss(start), loss(w)

    first, last = jax.jit(jax.vmap(end))(jnp.arange(len(LOSSES)))
    assert np.all(last - MINIMA >= -1e-9)
    assert np.all(last - MINIMA < 0.05 * first)


@pytest.mark.slow
def test_a_loss_of_zero_is_left_and_a_slope_without_end_keeps_the_state_finite():
    tx = OPTIMISERS["fomoh_kd(2)"]
    loss = lambda w: jnp.sum(w - jnp.arange(3.0)) + 3  # zero at the start

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(None, state, w, value_fn=loss)
        return (optax.apply_updates(w, updates), state), None

    start = jnp.zeros(D, "float32")
    run = lambda w: jax.lax.scan(step, (w, tx.init(w)), length=200)[0]
    w, state = jax.jit(run)(start)
    assert loss(start) == 0 and loss(w) < -1e6
    numbers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, "float")]
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in numbers)


@pytest.mark.slow
def test_a_step_that_does_not_move_is_not_counted():
    loss = lambda w: 0 * jnp.sum(w)
    tx = OPTIMISERS["fomoh(0.3)"]
    step = jax.jit(lambda w, state: tx.update(None, state, w, value_fn=loss))
    _, state = step(jnp.ones(D), tx.init(jnp.ones(D)))
    assert int(state[0].accepted) == 0 and int(state[0].steps) == 1


def solve(solver, slope, curvature):
    model = QuadraticModel(jnp.array(1.0), jnp.asarray(slope), jnp.asarray(curvature))
    return solver.solve(model, jnp.eye(len(slope)), solver.init(len(slope)))


@pytest.mark.slow
def test_only_what_is_flat_goes_as_far_as_the_reach():
    step, state = solve(solvers.saddle_free(), [3.0, 2.0], np.diag([1.5, 0.0]))
    # The first step is to win a twentieth of the loss.
    np.testing.assert_allclose(step, [2.0, 0.05 / 2])
    np.testing.assert_allclose(state.descent.length, 0.05 / 2)
    assert state.descent.made


@pytest.mark.slow
@pytest.mark.parametrize(("won", "longer"), [(1.0, True), (0.3, True), (-0.2, False)])
def test_steps_follow_what_those_before_them_have_won(won, longer):
    # A learning rate of 0.3 behind the solver lets three tenths of the reduction come.
    solver, last, lengths = jax.jit(solvers.saddle_free().solve), None, []
    model = QuadraticModel(jnp.array(1.0), jnp.array([1.0]), jnp.zeros((1, 1)))
    state = solvers.saddle_free().init(1)
    for _ in range(5):
        step, state = solver(model, jnp.eye(1), state, last)
        lengths.append(abs(float(step[0])))
        last = Outcome(jnp.array(1.0), step[0], won * step[0])
    assert lengths == sorted(lengths, reverse=not longer)
    assert len(set(lengths)) == len(lengths)


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("beyond", [np.nan, np.inf])
def test_a_flat_step_beyond_which_the_loss_is_not_finite_is_shortened(tries, beyond):
    loss = lambda x: jnp.where(x[0] < 2, 100 - x[0], beyond)
    search = solvers.searches.gain_ratio(tries=tries)
    solver = solvers.Solver(solvers.descents.saddle_free(), search)
    tx = fj.fomoh_kd(2, learning_rate=1.0, solver=solver, key=0)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=loss)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.zeros(2)
    run = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=60)[0][0])
    assert 1.5 < run()[0] < 2


def test_what_is_left_of_a_slope_by_rounding_is_not_followed():
    step, _ = solve(solvers.saddle_free(), [3.0, 1e-12], np.diag([1.5, 0.0]))
    np.testing.assert_array_equal(step, [2.0, 0.0])


def test_where_there_is_curvature_the_reach_learns_nothing():
    solver = solvers.saddle_free()
    _, state = solve(solver, [1.0, 2.0], np.diag([1.0, 2.0]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))
