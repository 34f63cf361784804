"""The trust-region subproblem against its own optimality conditions, and its radius."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fomoh_jax
from fomoh_jax import QuadraticModel, solvers
from fomoh_jax.solvers import Outcome
from tests.programs import rosenbrock
from tests.reference import normal


def outcome(value, predicted, actual):
    return Outcome(*map(jnp.asarray, (value, predicted, actual)))


def at_the_edge(solver):
    """The state after a step as long as the radius, which is 1."""
    state = solver.init(1)
    return state._replace(search=state.search._replace(used=jnp.array(1.0)))


@jax.jit
def step_of(slope, curvature, gram, radius):
    solver = solvers.trust_region()
    state = solver.init(len(slope))
    state = state._replace(search=state.search._replace(size=radius))
    return solver.solve(QuadraticModel(jnp.zeros(()), slope, curvature), gram, state)[0]


def assert_optimal(step, slope, curvature, gram, radius):
    """The conditions of Moré and Sorensen, which no other point meets."""
    length = np.sqrt(step @ gram @ step)
    assert length <= radius * (1 + 1e-9)
    residual = slope - curvature @ step
    multiplier = (step @ residual) / max(length**2, 1e-300)
    np.testing.assert_allclose(
        residual, multiplier * gram @ step, atol=1e-6 * np.abs(slope).max()
    )
    assert multiplier > -1e-8 * np.abs(curvature).max()
    if multiplier > 1e-6 * np.abs(curvature).max():
        np.testing.assert_allclose(length, radius, rtol=1e-8)
    whitened = np.linalg.inv(np.linalg.cholesky(gram))
    lowest = np.linalg.eigvalsh(whitened @ curvature @ whitened.T)[0]
    assert lowest + multiplier >= -1e-6 * max(1, np.abs(lowest))


@given(
    st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    st.floats(0.01, 100),
    st.integers(0, 30),
)
def test_the_step_is_the_minimum_within_the_radius_of_any_spectrum(
    eigenvalues, radius, seed
):
    rotation = np.linalg.qr(normal(4, 4, seed=seed))[0]
    v = normal(7, 4, seed=seed + 1)
    curvature = rotation @ np.diag(eigenvalues) @ rotation.T
    slope, gram = normal(4, seed=seed + 2), v.T @ v
    step = np.asarray(step_of(slope, curvature, gram, jnp.asarray(radius)))
    assert_optimal(step, slope, curvature, gram, radius)


def test_a_scaled_step_is_the_minimum_where_length_counts_the_most_curvature_of_late():
    v = normal(7, 4)
    gram, slope = v.T @ v, normal(4, seed=1)
    step = jax.jit(solvers.descents.trust(0.3, scaled=True).step)
    state = solvers.descents.trust(scaled=True).init(4)
    most = np.zeros(4)
    for seed in range(2, 5):
        curvature = normal(4, 4, seed=seed) * np.outer([9, 1, 1, 0.1], [9, 1, 1, 0.1])
        curvature += curvature.T
        most = np.maximum(0.9 * most, np.abs(np.diag(curvature)) / np.diag(gram))
        scale = np.sqrt(most / np.exp(np.mean(np.log(most))))
        metric = gram * np.outer(scale, scale)
        model = QuadraticModel(jnp.zeros(()), jnp.array(slope), jnp.array(curvature))
        none = Outcome(*jnp.zeros(3))
        made, state = step(model, jnp.array(gram), jnp.ones(()), none, state)
        assert_optimal(np.asarray(made.coefficients), slope, curvature, metric, 0.3)
        np.testing.assert_allclose(made.size, 1)
        np.testing.assert_allclose(made.length, np.linalg.norm(v @ made.coefficients))
        np.testing.assert_allclose(state.curvature, most)


def test_directions_without_curvature_or_length_scale_no_other():
    descent = solvers.descents.trust(1.0, scaled=True)

    @jax.jit
    def step_of(slope, curvature, gram):
        model = QuadraticModel(jnp.zeros(()), slope, curvature)
        arguments = model, gram, jnp.ones(()), Outcome(*jnp.zeros(3))
        return descent.step(*arguments, descent.init(4))[0].coefficients

    two, four = np.diag([1.0, 1.0, 0, 0]), np.eye(4)
    for slope, curvature, gram, expected in (
        ([0, 3, 4, 0], 0 * four, four, [0, 0.6, 0.8, 0]),
        ([3, 4, 0, 0], two, four, [0.6, 0.8, 0, 0]),
        ([3, 4, 0, 0], two, two, [0.6, 0.8, 0, 0]),
        ([0, 0, 3, 4], two, four, [0, 0, 0.6, 0.8]),
        ([0, 0, 9, 0], np.diag([16.0, 1, 1e-16, 0]), four, [0, 0, 2, 0]),  # as the 1
    ):
        found = step_of(*(jnp.array(x, float) for x in (slope, curvature, gram)))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_a_state_of_another_number_of_directions_is_refused():
    solver = solvers.trust_region(scaled=True)
    model = QuadraticModel(jnp.zeros(()), jnp.ones(3), jnp.eye(3))
    with pytest.raises(ValueError, match=r"is of 1 directions.*begin with init\(3\)"):
        solver.solve(model, jnp.eye(3), solver.init(1))


@pytest.mark.parametrize("rise", [100.0, np.nan])
def test_of_steps_alike_to_rounding_the_first_that_lowers_the_loss_is_taken(rise):
    # They lower it by less than rounding, but for the first, or by what is alike.
    model = QuadraticModel(jnp.array(1e3), jnp.ones(1), jnp.eye(1))
    solver, none = solvers.trust_region(1.0, tries=3), solvers.Outcome(*jnp.zeros(3))
    lengths = []
    small, alike = 1e-12, 1.5e-12
    for falls in ([-rise, small, alike], [small, alike, -rise], [-rise, -rise, -rise]):
        fall = lambda kappa: jnp.select(
            [kappa[0] == 1, kappa[0] < 1], [falls[0], falls[1]], falls[2]
        )
        attempt, _ = solver.attempt(model, jnp.eye(1), solver.init(1), none, fall)
        lengths.append(float(attempt.coefficients[0]))
    np.testing.assert_allclose(lengths, [1 / 3, 1.0, 1.0])


def test_scaled_steps_do_not_depend_on_the_units_of_the_parameters():
    tx = fomoh_jax.scale_by_hyperplane(
        fomoh_jax.directions.coordinates(), solvers.trust_region(scaled=True, tries=3)
    )

    def values(units):
        def step(carry, _):
            x, state = carry
            loss = lambda x: rosenbrock(units * x)
            updates, state = tx.update(None, state, x, value_fn=loss)
            return (x - updates, state), state.model.value

        x = jnp.array([0.2, -1.0, 0.5, 2.0]) / units
        return jax.lax.scan(step, (x, tx.init(x)), length=40)[1]

    # Of one geometric mean: the first radius is in their units.
    both = jax.jit(jax.vmap(values))(jnp.array([[1, 1, 1, 1], [20, 1, 0.5, 0.1]]))
    assert both[0, -1] < 1e-10
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6, atol=1e-18)


def test_the_hard_case_goes_along_negative_curvature_to_the_edge():
    curvature, slope = np.diag([-2.0, 1.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 0.0])
    step = np.asarray(step_of(slope, curvature, np.eye(4), jnp.asarray(5.0)))
    np.testing.assert_allclose(step[1:], [1 / 3, 0, 0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(step), 5.0)


def test_a_zero_slope_at_a_minimum_is_no_step():
    step = step_of(np.zeros(4), np.eye(4), np.eye(4), jnp.asarray(1.0))
    np.testing.assert_array_equal(step, 0)


def test_the_radius_follows_the_gain_and_a_rise_of_the_loss_is_refused():
    solver = solvers.trust_region(1.0)
    state = at_the_edge(solver)
    expected = [
        (1.0, 2.0, True),  # as predicted, to the edge: wider
        (0.5, 1.0, True),  # fair: as it is
        (0.1, 0.25, True),  # poor: narrower
        (-1.0, 0.25, False),  # the loss rises
        (np.nan, 0.25, False),
        (-np.inf, 0.25, False),
    ]
    for actual, radius, taken in expected:
        accepted, after = solver.judge(outcome(1.0, 1.0, actual), state)
        assert bool(accepted) == taken
        np.testing.assert_allclose(after.search.size, radius)


def test_a_search_that_looks_ahead_learns_nothing_from_the_next_model():
    solver = solvers.trust_region(1.0)
    model = QuadraticModel(jnp.array(1.0), jnp.array([4.0]), jnp.array([[1.0]]))
    last = outcome(2.0, 1.0, 1.0)  # as good as it can be, and judged already
    _, after = solver.solve(model, jnp.eye(1), at_the_edge(solver), last)
    np.testing.assert_allclose(after.search.size, 1.0)


def test_on_the_next_batch_the_radius_follows_the_value_of_the_next_model():
    solver = solvers.trust_region(1.0, measured_on="next")
    assert not solver.search.looks_ahead
    model = lambda value: QuadraticModel(
        jnp.array(value), jnp.array([4.0]), jnp.array([[1.0]])
    )
    step, state = solver.solve(model(10.0), jnp.eye(1), solver.init(1))
    np.testing.assert_allclose(step[0], 1.0)  # of which 3.5 are predicted
    for value, radius in ((6.5, 2.0), (9.9, 0.25), (20.0, 0.25)):
        last = outcome(10.0, 3.5, 10.0 - value)
        _, after = solver.solve(model(value), jnp.eye(1), state, last)
        np.testing.assert_allclose(after.search.size, radius)


def test_newton_in_a_trust_region_minimises_rosenbrock_and_never_climbs():
    tx = fomoh_jax.fomoh_kd(4, solver=solvers.trust_region())

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=rosenbrock)
        return (optax.apply_updates(x, updates), state), state[0].model.value

    x = jnp.array([-1.2, 1.0, -0.5, 2.0])
    (x, state), values = jax.jit(
        lambda x: jax.lax.scan(step, (x, tx.init(x)), length=100)
    )(x)
    assert np.all(np.diff(values) <= 0) and rosenbrock(x) < 1e-20
    # At the minimum there is no step to take.
    assert 10 < int(state[0].accepted) <= int(state[0].steps) == 100


def ripples(x):
    """A bowl with ripples, of which a model sees the nearest."""
    return jnp.sum(x**2) / 20 + 20 * jnp.prod(jnp.sin(5 * x) ** 2)


def along_axes(*solvers):
    """A step of each at the same point, compiled at once."""
    axes = fomoh_jax.directions.orthonormal(2)
    links = [fomoh_jax.scale_by_hyperplane(axes, solver) for solver in solvers]

    @functools.partial(jax.jit, static_argnums=1)
    def updates(x, loss=ripples):
        return [tx.update(None, tx.init(x), x, value_fn=loss) for tx in links]

    return updates


def test_of_several_radii_the_one_that_leads_to_the_least_loss_is_taken():
    ones = [solvers.trust_region(r) for r in (0.02, 0.06, 0.18, 0.54, 1.62)]
    some = solvers.trust_region(0.18, tries=5), solvers.trust_region(0.18, tries=2)
    steps = along_axes(*ones, *some)
    chosen = set()
    for start in [(3.2, -2.0), (0.75, 1.4), (9.0, 9.3), (-5.0, 7.0)]:
        x = jnp.array(start)
        *alone, (of_five, state), (of_two, _) = steps(x)
        losses = [float(ripples(x - step)) for step, _ in alone]
        expected = alone[np.argmin(losses)][0]
        np.testing.assert_allclose(of_five, expected, rtol=1e-12)
        np.testing.assert_allclose(state.actual_reduction, ripples(x) - min(losses))
        # Two are the radius, and the one below it.
        expected = alone[1 + np.argmin(losses[1:3])][0]
        np.testing.assert_allclose(of_two, expected, rtol=1e-12)
        chosen.add(int(np.argmin(losses)))
    assert len(chosen) > 1


def test_radii_that_lower_no_loss_do_not_count_and_if_all_do_not_they_shrink():
    x = jnp.array([3.2, -2.0])
    far = lambda y: jnp.linalg.norm(jax.lax.stop_gradient(y) - x)
    hidden = lambda y: ripples(y) + 1e3 * far(y)
    cliff = lambda y: jnp.where(far(y) < 0.1, ripples(y), jnp.nan)
    # A loss that falls again, further out, where it is still worse.
    plateau = lambda y: ripples(y) + 1e3 * jnp.exp(-far(y)) * (far(y) > 0)
    abyss = lambda y: jnp.where(far(y) < 0.1, ripples(y), -jnp.inf)
    nowhere = lambda y: jnp.where(far(y) == 0, ripples(y), jnp.nan)
    steps = along_axes(solvers.trust_region(0.12, tries=3))
    for loss, taken in (
        (hidden, False),
        (plateau, False),
        (cliff, True),
        (abyss, True),
        (nowhere, False),
    ):
        ((step, state),) = steps(x, loss)
        assert (0 < np.linalg.norm(step) <= 0.04 * (1 + 1e-9)) == taken
        assert bool(np.any(step != 0)) == taken == int(state.accepted)
        assert taken or 0 < state.solver_state.search.size <= 0.12 / 4


def test_several_radii_wait_at_a_minimum_and_follow_when_it_moves():
    tx = fomoh_jax.fomoh_kd(2, solver=solvers.trust_region(tries=5))
    loss = lambda x, target: jnp.sum((x - target) ** 2)

    def step(carry, target):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=loss, target=target)
        return (optax.apply_updates(x, updates), state), None

    for dtype in ("float32", "float64"):
        x = jnp.zeros(2, dtype)
        targets = jnp.concatenate([jnp.zeros(60, dtype), jnp.ones(10, dtype)])
        (x, _), _ = jax.jit(functools.partial(jax.lax.scan, step))(
            (x, tx.init(x)), targets
        )
        np.testing.assert_allclose(x, 1, rtol=1e-6)


def test_several_radii_leave_the_ripples_that_hold_one():
    def minimised(tries, x):
        tx = fomoh_jax.fomoh_kd(2, solver=solvers.trust_region(tries=tries))

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(None, state, x, value_fn=ripples)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=60)
        return ripples(x)

    starts = jnp.array([[3.2, -2.0], [9.0, 9.0], [-5.0, 7.0], [-4.0, 3.0]])
    ends = lambda tries: jax.vmap(functools.partial(minimised, tries))(starts)
    one, five = jax.jit(lambda: (ends(1), ends(5)))()
    assert np.all(one > 0.01) and np.all(five < 1e-20)


def test_arguments_out_of_range_are_refused():
    for tries in (0, 1.5):
        with pytest.raises((TypeError, ValueError), match="tries must be"):
            solvers.trust_region(tries=tries)
    with pytest.raises(ValueError, match='several tries need measured_on="same"'):
        solvers.trust_region(measured_on="next", tries=3)
    for arguments in ({"radius": 0.0}, {"radius": 2.0, "max_radius": 1.0}):
        with pytest.raises(ValueError, match="trust_region needs 0 < radius"):
            solvers.trust_region(**arguments)
    with pytest.raises(ValueError, match='measured_on must be "same" or "next"'):
        solvers.trust_region(measured_on="both")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_radius_comes_back_after_any_number_of_refusals(dtype):
    solver = solvers.trust_region()
    one = jnp.ones((), dtype)
    model = QuadraticModel(one, jnp.ones(1, dtype), jnp.ones((1, 1), dtype))

    def step(state, actual):
        _, state = solver.solve(model, jnp.eye(1, dtype=dtype), state)
        _, state = solver.judge(Outcome(one, one, actual), state)
        return state, state.search.size

    actual = jnp.concatenate([-jnp.ones(600, dtype), jnp.ones(10, dtype)])
    _, sizes = jax.jit(lambda a: jax.lax.scan(step, solver.init(1), a))(actual)
    np.testing.assert_allclose(sizes[609], 2.0**10 * sizes[599])


def test_a_model_that_rises_is_refused():
    solver = solvers.trust_region()
    assert not solver.judge(outcome(1.0, -1e-3, -1e4), at_the_edge(solver))[0]


@pytest.mark.parametrize("tries", [1, 4])
def test_a_loss_that_is_not_finite_at_first_is_outlived(tries):
    tx = fomoh_jax.fomoh_kd(4, solver=solvers.trust_region(tries=tries))
    x = jnp.zeros(4)
    state = tx.init(x)
    value_fn = lambda x, scale: scale * jnp.sum((x - 1) ** 2)
    update = jax.jit(functools.partial(tx.update, value_fn=value_fn))
    for scale in 300 * [jnp.nan, jnp.inf] + 3 * [1.0]:
        updates, state = update(None, state, x, scale=scale)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x, 1.0, rtol=1e-6)
    assert int(state[0].accepted) <= 3


@pytest.mark.optimised
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_scale_of_the_loss_does_not_matter_in_float32(scale):
    scale = np.float32(scale)
    tx = fomoh_jax.fomoh_kd(3, solver=solvers.trust_region(0.5))
    loss = lambda x: scale * jnp.sum((x - 3) ** 2)
    params = jnp.zeros(3, jnp.float32)
    state = tx.init(params)
    update = jax.jit(functools.partial(tx.update, value_fn=loss))
    for _ in range(8):
        updates, state = update(None, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, 3, rtol=1e-5)
