"""The optimisers along perturbed activations, step by step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fomoh_jax
from fomoh_jax import directions, plans, solvers
from fomoh_jax._activations.block_table import kinds_of_leaves
from fomoh_jax._fomoh_ap import (
    EffortState,
    normalised_average,
    parts_of,
    reconsidered,
)
from fomoh_jax.directions._structured import grouped
from fomoh_jax.solvers._solver import Search
from tests.activations.models import CASES, dense
from tests.reference import assert_close, normal, slow

DENSE = CASES["dense"]
KEY = jax.random.key(5)


def mean_of(loss):
    return lambda params, batch: jnp.mean(jax.vmap(loss, (None, 0))(params, batch))


def one_step(tx, case=DENSE, **options):
    given = {"value_fn": case.loss, "batch": case.batch} | options
    return jax.jit(lambda s: tx.update(None, s, case.params, **given))(
        tx.init(case.params)
    )


def trained(tx, steps, case=DENSE, params=None, **options):
    """The parameters and states after each step."""
    given = {"value_fn": case.loss, "batch": case.batch} | options

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, **given)
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    params = case.params if params is None else params
    start = params, tx.init(params)
    return jax.jit(lambda s: jax.lax.scan(step, s, length=steps)[1])(start)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"blocks": 2, "probes": 3}])
def test_the_link_hands_on_the_estimate(options):
    tx = fomoh_jax.scale_by_activity_gradient(key=KEY, **options)
    gradient, state = one_step(tx)
    following, key = jax.random.split(KEY)
    estimate = jax.jit(fomoh_jax.forward_value_and_grad(DENSE.loss, **options))
    value, expected = estimate(DENSE.params, DENSE.batch, key)
    assert_close(gradient, expected, rtol=1e-12)
    assert_close(state.value, value, rtol=1e-12)
    assert state.key == following


@pytest.mark.slow
def test_optax_follows_the_link():
    tx = optax.chain(
        fomoh_jax.scale_by_activity_gradient(blocks=1),
        optax.clip_by_global_norm(1.0),
        optax.adam(1e-2),
    )
    actual, _ = one_step(tx)
    rest = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    gradient = jax.grad(mean_of(DENSE.loss))(DENSE.params, DENSE.batch)
    assert_close(actual, rest.update(gradient, rest.init(DENSE.params))[0], rtol=1e-9)


@pytest.mark.slow
def test_what_the_loss_takes_beside_an_example_is_the_same_for_all():
    def loss(params, example, *, scale):
        return scale * dense(params, example)

    one, double = (
        one_step(
            fomoh_jax.scale_by_activity_gradient(), value_fn=loss, scale=jnp.array(s)
        )
        for s in (1.0, 2.0)
    )
    assert_close(jax.tree.map(lambda x: 2 * x, one[0]), double[0], rtol=1e-12)
    tx = fomoh_jax.fomoh_ap()
    steps = [one_step(tx, value_fn=loss, scale=jnp.array(s))[0] for s in (1.0, 2.0)]
    assert_close(*steps, rtol=1e-8)  # a step to a minimum has no scale


def test_the_plane_s_model_is_computed_by_the_plan():
    with pytest.raises(ValueError, match=r"mesh_axis must name an axis.*'nowhere'"):
        one_step(fomoh_jax.fomoh_ap(plan=plans.split("nowhere")))


@pytest.mark.slow
def test_the_plane_of_the_loss_of_one_example_is_that_of_the_mean():
    make = functools.partial(
        fomoh_jax.scale_by_hyperplane, directions.gaussian(3), solvers.saddle_free()
    )
    mean = mean_of(DENSE.loss)
    expected, plain = one_step(make(key=KEY), value_fn=mean)
    actual, state = one_step(make(key=KEY, per_example=True))
    assert_close(actual, expected, rtol=1e-9)
    assert_close(state.model, plain.model, rtol=1e-9)


def test_the_plane_of_parts_of_the_batch_is_that_of_the_whole():
    def loss(params, example):
        return dense(params, example), {"label": example[1]}

    make = functools.partial(
        fomoh_jax.scale_by_hyperplane, directions.gaussian(3), solvers.saddle_free()
    )
    given = {"key": KEY, "per_example": True, "has_aux": True}
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x + 1])[:6], DENSE.batch)
    expected, whole = one_step(make(**given), value_fn=loss, batch=batch)
    for parts in (2, 6):
        tx = make(**given, parts=parts)
        actual, state = one_step(tx, value_fn=loss, batch=batch)
        assert_close(actual, expected, rtol=1e-9)
        assert_close(state.model, whole.model, rtol=1e-9)
        assert_close(state.aux["label"], batch[1])
    with pytest.raises(ValueError, match="a divisor of the batch's 5 examples; got 2"):
        one_step(make(key=KEY, per_example=True, parts=2))
    with pytest.raises(ValueError, match="set per_example=True"):
        make(parts=2)
    with pytest.raises(ValueError, match="parts must be at least 1"):
        make(per_example=True, parts=0)


def test_batches_that_can_be_taken_apart_are():
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Explicit,))
    counts = {8: 1, 16: 4, 17: 1, 18: 3, 22: 2, 1024: 4}
    for examples, parts in counts.items():
        batch = np.zeros((examples, 3)), np.zeros(examples)
        assert parts_of(batch) == parts
    with jax.set_mesh(mesh):
        assert parts_of(jax.device_put(jnp.zeros((16, 3)), P("data"))) == 1
        assert parts_of(jnp.zeros((16, 3))) == 4


@pytest.mark.slow
@pytest.mark.optimised
def test_the_plane_of_parts_takes_less_memory():
    widths = (4, 128, 128, 4)
    layers = [jnp.zeros(s, jnp.float32) for s in itertools.pairwise(widths)]
    batch = jnp.zeros((4096, 4), jnp.float32)
    loss = lambda params, x: jnp.sum(
        functools.reduce(lambda x, w: jnp.tanh(x @ w), params, x)
    )

    def temporaries(parts):
        tx = fomoh_jax.scale_by_hyperplane(
            directions.incoming(), per_example=True, parts=parts
        )
        step = jax.jit(
            lambda params, batch: tx.update(
                params, tx.init(params), params, value_fn=loss, batch=batch
            )[0]
        )
        compiled = step.lower(layers, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.4 * temporaries(1)


@pytest.mark.slow
def test_a_step_goes_to_the_minimum_in_the_plane_of_two_parts():
    start = jax.tree.map(lambda x: x, DENSE.params)
    tx = fomoh_jax.fomoh_ap(solver=solvers.newton(), key=KEY)
    step, state = one_step(tx)
    *_, plane, _ = state
    # Along the direction itself, the gradient of the first step over its mean square.
    estimate = fomoh_jax.forward_value_and_grad(DENSE.loss, blocks=2)
    _, gradient = estimate(start, DENSE.batch, jax.random.split(KEY)[1])
    average = normalised_average()
    along, _ = average.update(gradient, average.init(start), start)
    exact = {"hidden": [(False, False), (True, True)], "out": True}
    parts = [
        jax.tree.map(lambda v, e: jnp.where(e == wanted, v, 0), along, exact)
        for wanted in (True, False)
    ]
    mean = lambda params: mean_of(DENSE.loss)(params, DENSE.batch)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    model = fomoh_jax.quadratic_model(mean, (start,), (stacked,))
    kappa = jnp.linalg.solve(model.curvature, model.slope)
    assert_close(plane.coefficients, kappa, rtol=1e-7)
    expected = jax.tree.map(lambda v: -jnp.einsum("i,i...", kappa, v), stacked)
    assert_close(step, expected, rtol=1e-7, atol=1e-12)


def test_steps_between_models_go_on_with_their_coefficients_and_no_further():
    tx = optax.chain(
        fomoh_jax.scale_by_activity_gradient(key=KEY),
        fomoh_jax.scale_by_hyperplane(
            directions.incoming(),
            solvers.self_tuning(),
            per_example=True,
            every=3,
        ),
        optax.scale(-1.0),
    )
    params, (_, planes, _) = trained(tx, 7)
    assert planes.steps.tolist() == list(range(1, 8)) == planes.accepted.tolist()
    new = np.flatnonzero(np.diff(planes.model.value)) + 1
    assert new.tolist() == [3, 6]
    assert np.unique(planes.coefficients).size == 3
    before = jax.tree.map(
        lambda x, y: jnp.concatenate([x[None], y]), DENSE.params, params
    )
    key, longest, shortened = KEY, None, 0
    for i in range(7):
        at = jax.tree.map(lambda x: x[i], before)
        key, own = jax.random.split(key)
        estimate = jax.jit(fomoh_jax.forward_value_and_grad(DENSE.loss))
        _, gradient = estimate(at, DENSE.batch, own)
        length = optax.tree.norm(gradient)
        longest = length if i in {0, 3, 6} else longest
        shortened += length > longest
        step = planes.coefficients[i, 0] * min(1, longest / length)
        after = jax.tree.map(lambda p, g: p - step * g, at, gradient)
        assert_close(jax.tree.map(lambda x: x[i], params), after, rtol=1e-9)
    assert 0 < shortened < 4
    # What is expected of a model's steps is what they all were to bring.
    assert_close(
        planes.actual_reduction[3],
        planes.model.value[2] - planes.model.value[3],
        rtol=1e-9,
    )


def test_steps_between_models_do_not_go_where_the_gradient_says_uphill():
    x = jnp.array([1.0, 2.0, 3.0])
    parts = grouped(directions.incoming(), lambda _: [0, None, 1], lambda _: 2)
    tx = fomoh_jax.scale_by_hyperplane(parts, solvers.newton(), every=2)
    params, updates = list(x), list(jnp.cosh(x))
    case = {"value_fn": lambda x: jnp.sum(jnp.cosh(jnp.stack(x)))}
    first, state = tx.update(updates, tx.init(params), params, **case, grad=None)
    grad = [jnp.array(0.1), jnp.array(1.0), jnp.array(-0.1)]
    held, _ = tx.update(updates, state, params, **case, grad=grad)
    assert_close(held, [first[0], jnp.zeros(()), jnp.zeros(())], rtol=1e-12)
    with pytest.raises(ValueError, match="grad must be like the parameters"):
        tx.update(updates, state, params, **case, grad=grad[:2])


def test_a_search_sees_the_reduction_of_all_steps_since_the_last_model():
    seen = []

    def learn(outcome, state):
        jax.debug.callback(lambda *x: seen.append(tuple(map(float, x))), *outcome)
        return True, state

    search = Search(lambda state: 0.5, learn)
    solver = solvers.Solver(solvers.descents.saddle_free(), search)
    tx = fomoh_jax.scale_by_hyperplane(
        directions.incoming(), solver, per_example=True, every=4
    )
    case = DENSE
    gradient = jax.grad(mean_of(case.loss))(case.params, case.batch)
    state = tx.init(case.params)
    update = jax.jit(
        lambda state: tx.update(
            gradient, state, case.params, value_fn=case.loss, batch=case.batch
        )[1]
    )
    for _ in range(5):
        state = update(state)
    jax.effects_barrier()
    assert len(seen) == 2
    np.testing.assert_allclose(seen[1][1], 4 * float(state.predicted_reduction))


def test_a_model_of_one_block_is_trained_by_its_gradient():
    loss = lambda w, example: jnp.cosh(w @ example - 1)
    batch, w = normal(6, 3), jnp.zeros(3)
    tx = fomoh_jax.fomoh_ap()
    state = tx.init(w)
    for _ in range(2):
        step, state = tx.update(None, state, w, value_fn=loss, batch=batch)
        w = optax.apply_updates(w, step)
    assert mean_of(loss)(w, batch) < mean_of(loss)(jnp.zeros(3), batch)
    assert state[2].coefficients[0] != 0 == state[2].coefficients[1]


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [None, 2, 1])
def test_it_learns_what_the_last_block_alone_cannot(blocks):
    """The sign of a product, in float32."""
    x = np.asarray(normal(256, 2), np.float32)
    batch = x, jnp.asarray(x[:, 0] * x[:, 1] > 0, jnp.float32)
    scale = lambda *s: jnp.asarray(normal(*s) / s[0] ** 0.5, jnp.float32)
    params = [scale(3, 8), scale(8, 8), scale(8, 1)]

    def loss(params, example):
        x, y = example
        h = jnp.append(x, 1)
        for w in params[:-1]:
            h = jax.nn.relu(h @ w)
        return optax.sigmoid_binary_cross_entropy((h @ params[-1])[0], y)

    case = DENSE._replace(loss=loss, params=params, batch=batch)
    _, (first, *_) = trained(fomoh_jax.fomoh_ap(blocks), 300, case)
    frozen = lambda tail, example: loss([*params[:-1], tail], example)
    tail = case._replace(loss=frozen, params=params[-1])
    _, (last, *_) = trained(fomoh_jax.fomoh_ap(1), 300, tail)
    assert first.value.max() < 1.1 * first.value[0]  # no step goes astray
    assert first.value[-20:].max() < 0.3 * last.value[-1]


@pytest.mark.slow
def test_the_worth_of_a_part_is_how_much_further_the_model_falls_with_it():
    slope, root = normal(2), normal(2, 2)
    curvature = root @ root.T
    model = fomoh_jax.QuadraticModel(jnp.zeros(()), slope, curvature)
    alone = slope[0] ** 2 / curvature[0, 0]
    both = slope @ np.linalg.solve(curvature, slope)
    assert 0 < both / alone - 1 < 1
    true, before = (
        jnp.array(True),
        EffortState(jnp.zeros(()), jnp.array(3), jnp.ones(())),
    )
    after = reconsidered(before, true, model, true)
    np.testing.assert_allclose(3 * after.worth, both / alone - 1, rtol=1e-6)
    first = reconsidered(before._replace(models=jnp.array(0)), true, model, true)
    np.testing.assert_allclose(first.worth, both / alone - 1, rtol=1e-6)
    assert first.models == 1
    unknown = reconsidered(before, ~true, model, true)
    assert unknown.worth == 0 and unknown.due == 1 / 16  # it is tried again
    assert reconsidered(before, true, model, ~true).due == before.due


def test_blocks_that_are_worth_nothing_are_seldom_taken():
    def loss(params, example):
        x, label = example
        hidden = jnp.tanh(x @ params["in"])
        return dense({"hidden": [], "out": params["out"]}, (x + 1e-9 * hidden, label))

    x, _ = DENSE.batch
    params = {"in": normal(x.shape[1], x.shape[1]), "out": normal(x.shape[1], 3)}
    case = DENSE._replace(loss=loss, params=params)
    after, (_, averages, plane, effort) = trained(fomoh_jax.fomoh_ap(every=1), 60, case)
    changed = np.any(np.diff(after["in"], axis=0) != 0, axis=(1, 2))
    assert 2 <= changed[20:].sum() <= 4 and effort.worth[-1] < 0.01
    # What is known of their direction stays as it is meanwhile.
    of_in = averages[1].ema["in"]
    kept = np.all(np.diff(of_in, axis=0) == 0, axis=(1, 2))
    np.testing.assert_array_equal(kept, ~changed)
    moved = np.any(np.diff(after["out"], axis=0) != 0, axis=(1, 2))
    assert np.all(moved[:40])  # until the loss is zero
    assert plane.model.value[-1] < plane.model.value[0]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_moves_nothing():
    """Neither at a step with a model nor between two of them."""
    loss = lambda p, example, scale: dense(p, example) * scale
    tx = fomoh_jax.fomoh_ap(every=2)
    given = {"value_fn": loss, "batch": DENSE.batch}
    update = jax.jit(
        lambda state, scale: tx.update(None, state, DENSE.params, scale=scale, **given)
    )
    state = tx.init(DENSE.params)
    for scale in (jnp.nan, 1.0, jnp.inf, 1.0, jnp.nan, 1.0):
        step, after = update(state, jnp.asarray(scale))
        moved = np.isfinite(scale)
        assert moved == any(np.any(x) for x in jax.tree.leaves(step))
        if not moved:
            assert_close(after[1:], state[1:])
        state = after
    assert state[2].steps == state[2].accepted == 3


def test_the_worth_does_not_depend_on_the_scale_of_the_loss():
    """Where nothing is learned along the exact part, the other is worth everything."""
    one = jnp.ones(())
    for scale in (1.0, 1e-6):
        model = fomoh_jax.QuadraticModel(
            one, scale * jnp.array([0.0, 1.0]), scale * jnp.diag(jnp.array([0.0, 1.0]))
        )
        true = jnp.array(True)
        effort = EffortState(one, jnp.array(1), one)
        assert reconsidered(effort, true, model, true).worth == 1


@pytest.mark.slow
def test_parameters_that_the_loss_does_not_know_stay():
    params = {"in": DENSE.params, "unused": jnp.ones(3)}
    loss = lambda p, example: dense(p["in"], example)
    case = DENSE._replace(loss=loss, params=params)
    after, (*_, effort) = trained(fomoh_jax.fomoh_ap(None), 8, case)
    assert np.all(after["unused"] == 1) and effort.worth[-1] > 0.05


@pytest.mark.slow
def test_the_two_parts_may_be_of_two_precisions():
    params = DENSE.params | {"out": DENSE.params["out"].astype(jnp.float32)}
    _, (estimates, *_) = trained(
        fomoh_jax.fomoh_ap(None), 8, DENSE._replace(params=params)
    )
    assert estimates.value.dtype == jnp.float64
    assert estimates.value[-1] < estimates.value[0]


@pytest.mark.slow
def test_half_precision_is_averaged_in_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.float16), DENSE.params)
    params["out"] = jnp.zeros_like(params["out"])
    params, (estimates, averages, *_) = trained(
        fomoh_jax.fomoh_ap(), 40, DENSE._replace(params=params)
    )
    assert estimates.value[-1] < 0.5 * estimates.value[0]
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float16")}
    assert {x.dtype for x in jax.tree.leaves(averages[1].ema)} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "direction",
    [
        optax.identity(),
        slow(optax.flatten(optax.trace(0.9))),
        slow(optax.contrib.muon(1.0)),
    ],
)
def test_any_direction_of_optax_will_do(direction):
    tx = fomoh_jax.fomoh_ap(direction=direction)
    _, (estimates, *_) = trained(tx, 20)
    assert estimates.value[-1] < 0.9 * estimates.value[0]


@pytest.mark.slow
def test_inside_a_shard_map_each_device_steps_by_its_own_examples():
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    batch = jax.tree.map(lambda x: x[:4], DENSE.batch)
    tx = fomoh_jax.fomoh_ap()
    state = tx.init(DENSE.params)

    def step(params, batch):
        updates, _ = tx.update(None, state, params, value_fn=DENSE.loss, batch=batch)
        return jax.tree.map(lambda x: x[None], updates)

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
    )
    actual = jax.jit(mapped)(DENSE.params, batch)
    second = jax.tree.map(lambda x: x[2:], batch)
    expected = jax.tree.map(lambda x: x[0], jax.jit(step)(DENSE.params, second))
    assert_close(jax.tree.map(lambda x: x[1], actual), expected, rtol=1e-7)


def test_the_aux_of_every_example_is_in_the_state():
    def loss(params, example):
        return dense(params, example), {"label": example[1]}

    labels = jax.tree.map(jnp.zeros_like, {"label": DENSE.batch[1]})
    tx = fomoh_jax.fomoh_ap(has_aux=True, aux_struct=labels)
    _, (estimates, *_) = trained(tx, 5, value_fn=loss)
    assert_close(estimates.aux["label"][-1], DENSE.batch[1])
    plane = fomoh_jax.scale_by_hyperplane(
        directions.incoming(), per_example=True, every=2, has_aux=True
    )
    gradient = jax.tree.map(jnp.ones_like, DENSE.params)
    state = plane.init(DENSE.params)
    update = jax.jit(functools.partial(plane.update, value_fn=loss))
    for _ in range(2):  # the first state has no aux yet
        _, state = update(gradient, state, DENSE.params, batch=DENSE.batch)
        assert_close(state.aux["label"], DENSE.batch[1])


@pytest.mark.slow
@pytest.mark.optimised
def test_a_sharded_batch_takes_the_same_step():
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x])[:8], DENSE.batch)
    tx = fomoh_jax.fomoh_ap()
    state = tx.init(DENSE.params)
    update = jax.jit(
        lambda params, batch: tx.update(
            None, state, params, value_fn=DENSE.loss, batch=batch
        )[0]
    )
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    params = jax.device_put(DENSE.params, NamedSharding(mesh, P()))
    assert_close(update(params, sharded), update(DENSE.params, batch), rtol=1e-8)


def test_bad_arguments_are_refused():
    tx = fomoh_jax.fomoh_ap()
    state = tx.init(DENSE.params)
    given = {"value_fn": DENSE.loss, "batch": DENSE.batch}
    with pytest.raises(ValueError, match="needs the examples as batch"):
        tx.update(None, state, DENSE.params, value_fn=DENSE.loss)
    with pytest.raises(ValueError, match="needs the loss as value_fn"):
        tx.update(None, state, DENSE.params, batch=DENSE.batch)
    with pytest.raises(ValueError, match="needs the current params"):
        tx.update(None, state, **given)
    with pytest.raises(TypeError, match="got rate, which it does not take"):
        tx.update(None, state, DENSE.params, rate=1, **given)
    x, label = DENSE.batch
    with pytest.raises(ValueError, match="must all lead with the examples"):
        tx.update(None, state, DENSE.params, value_fn=DENSE.loss, batch=(x, label[1:]))
    for make in (fomoh_jax.fomoh_ap, fomoh_jax.scale_by_activity_gradient):
        with pytest.raises(ValueError, match="blocks must be at least 1; got 0"):
            make(blocks=0)
        with pytest.raises(ValueError, match="probes must be at least 1; got 0"):
            make(probes=0)
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        fomoh_jax.fomoh_ap(every=0)
    with pytest.raises(ValueError, match="every must be 1 for random directions"):
        fomoh_jax.scale_by_hyperplane(directions.gaussian(2), every=2)
    with pytest.raises(ValueError, match="leave per_example out"):
        fomoh_jax.scale_by_hyperplane(
            directions.incoming(), curvature="gauss_newton", per_example=True
        )
    with pytest.raises(TypeError, match="solver must be a Solver"):
        fomoh_jax.fomoh_ap(solver=solvers.self_tuning)
    with pytest.raises(TypeError, match="direction must be a GradientTransformation"):
        fomoh_jax.fomoh_ap(direction=optax.scale_by_adam)
    plane = fomoh_jax.scale_by_hyperplane(directions.gaussian(2), per_example=True)
    state = plane.init(DENSE.params)
    with pytest.raises(ValueError, match="must all lead with the examples"):
        plane.update(
            None, state, DENSE.params, value_fn=DENSE.loss, batch=(x, label[1:])
        )


@pytest.mark.slow
@pytest.mark.optimised
def test_a_step_takes_so_many_forward_passes():
    widths = (256, 256, 256, 256, 256, 10)
    layers = [jnp.zeros(s, jnp.float32) for s in itertools.pairwise(widths)]
    batch = jnp.zeros((512, 256), jnp.float32), jnp.zeros(512, jnp.int32)

    def loss(params, example):
        x, label = example
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params[-1], label)

    def passes(function, *args):
        compiled = [
            jax.jit(f).lower(layers, *more).compile().cost_analysis()["flops"]
            for f, more in ((function, args), (mean_of(loss), (batch,)))
        ]
        return compiled[0] / compiled[1]

    key = jax.eval_shape(jax.random.key, 0)
    estimate = fomoh_jax.forward_value_and_grad(loss, blocks=2)
    kinds, _ = kinds_of_leaves(loss, layers, batch, 2, False)

    def model(groups):
        along = grouped(directions.incoming(), lambda p: groups, lambda p: 2)
        mean = mean_of(loss)
        return lambda params, batch: fomoh_jax.quadratic_model(
            lambda params: mean(params, batch),
            (params,),
            (along.sample(None, params, params),),
        )

    assert kinds == ["estimated"] * 2 + ["exact"] * 3
    exact = [kind == "exact" for kind in kinds]
    assert passes(estimate, batch, key) < 4.1
    assert passes(model([0 if e else 1 for e in exact]), batch) < 5.2
    assert passes(model([0 if e else None for e in exact]), batch) < 2.1
