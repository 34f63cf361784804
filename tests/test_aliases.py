"""The optimisers, alone and composed with the rest of the ecosystem."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fomoh_jax
from fomoh_jax import directions, plans, solvers
from tests.programs import mlp, rosenbrock
from tests.reference import assert_close, jitted, partly_slow

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
TARGET = jnp.array(2.0)

ALIASES = {
    "fgd": functools.partial(fomoh_jax.fgd, 0.05),
    "fomoh": functools.partial(fomoh_jax.fomoh, 0.5),
    "fomoh_kd": functools.partial(fomoh_jax.fomoh_kd, 2, learning_rate=0.5),
    "fomoh_bp": functools.partial(fomoh_jax.fomoh_bp, 0.5),
}


def loss(params, target):
    return jnp.sum((params["a"] - target) ** 2) + jnp.cosh(params["b"])


@functools.cache
def step_of(tx, use_grads):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, TARGET)
        updates, state = tx.update(
            grads if use_grads else None, state, params, value_fn=loss, target=TARGET
        )
        return optax.apply_updates(params, updates), state, value

    return step


def run(tx, steps=60, params=PARAMS, state=None, use_grads=True):
    """Losses of a run, and where it ended."""
    step = step_of(tx, use_grads)
    state = tx.init(params) if state is None else state
    values = []
    for _ in range(steps):
        params, state, value = step(params, state)
        values.append(float(value))
    return values, params, state


@pytest.mark.parametrize("name", ["fomoh", "fomoh_kd", "fomoh_bp"])
def test_every_alias_computes_its_model_by_the_plan(name):
    tx = ALIASES[name](plan=plans.split("nowhere"))
    at_target = functools.partial(loss, target=TARGET)
    with pytest.raises(ValueError, match=r"mesh_axis must name an axis.*'nowhere'"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=at_target)


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_minimises(name):
    values, params, _ = run(ALIASES[name]())
    assert values[-1] < 1 + 0.02 * (values[0] - 1)
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)


@pytest.mark.slow
def test_fomoh_is_the_line_search_of_the_paper():
    tx = fomoh_jax.fomoh(0.5, key=7)
    state = tx.init(PARAMS)
    _, sample_key = jax.random.split(optax.tree.get(state, "key"))
    v = directions.gaussian(1).sample(sample_key, PARAMS, None)
    f = lambda t: loss(jax.tree.map(lambda p, d: p + t * d[0], PARAMS, v), TARGET)
    slope, curvature = (jax.jit(df)(0.0) for df in (jax.grad(f), jax.hessian(f)))
    update = jax.jit(functools.partial(tx.update, value_fn=loss))
    updates, _ = update(None, state, PARAMS, target=TARGET)
    expected = jax.tree.map(lambda d: -0.5 * slope / jnp.abs(curvature) * d[0], v)
    assert_close(updates, expected)


def test_fomoh_bp_searches_along_the_gradient():
    grads = jax.grad(loss)(PARAMS, TARGET)
    tx = fomoh_jax.fomoh_bp(1.0)
    update = jax.jit(functools.partial(tx.update, value_fn=loss))
    updates, _ = update(grads, tx.init(PARAMS), PARAMS, target=TARGET)
    gradient = lambda p: jax.grad(loss)(p, TARGET)
    _, hvp = jitted(jax.jvp)(gradient, (PARAMS,), (grads,))
    scale = optax.tree.vdot(grads, grads) / optax.tree.vdot(grads, hvp)
    assert_close(updates, jax.tree.map(lambda g: -scale * g, grads))


def test_fgd_is_the_directional_derivative_times_the_direction():
    tx = fomoh_jax.fgd(0.1, key=3)
    state = tx.init(PARAMS)
    _, sample_key = jax.random.split(optax.tree.get(state, "key"))
    v = directions.gaussian(1).sample(sample_key, PARAMS, None)
    v = jax.tree.map(lambda d: d[0], v)
    slope = optax.tree.vdot(jax.grad(loss)(PARAMS, TARGET), v)
    updates, _ = tx.update(None, state, PARAMS, value_fn=loss, target=TARGET)
    assert_close(updates, jax.tree.map(lambda d: -0.1 * slope * d, v))


@pytest.mark.slow
def test_fomoh_kd_with_k_equal_to_d_is_newton_s_method():
    x = jnp.array([-1.2, 1.0, 0.3, 0.8])
    tx = fomoh_jax.fomoh_kd(4, learning_rate=1.0)
    state = tx.init(x)
    step = jax.jit(functools.partial(tx.update, value_fn=rosenbrock))
    newton = x

    @jax.jit
    def newton_step(x):
        return jnp.linalg.solve(jax.hessian(rosenbrock)(x), jax.grad(rosenbrock)(x))

    for _ in range(6):
        updates, state = step(None, state, x)
        x = x + updates
        newton = newton - newton_step(newton)
        np.testing.assert_allclose(x, newton, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ALIASES)
def test_the_building_blocks_in_a_chain_with_decay_clipping_and_a_schedule(name):
    make = {
        "fgd": fomoh_jax.scale_by_forward_gradient(directions.gaussian(2)),
        "fomoh": fomoh_jax.scale_by_hyperplane(
            directions.gaussian(1), solvers.saddle_free()
        ),
        "fomoh_kd": fomoh_jax.scale_by_hyperplane(directions.rademacher(2)),
        "fomoh_bp": fomoh_jax.scale_by_hyperplane(
            directions.incoming() + directions.gaussian(1), solvers.damped()
        ),
    }
    tx = optax.chain(
        make[name],
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(1e-3),
        optax.scale_by_learning_rate(optax.linear_schedule(0.5, 0.05, 50)),
    )
    values, _, _ = run(tx)
    assert values[-1] < 1 + 0.1 * (values[0] - 1)


@pytest.mark.slow
def test_schedules_set_the_learning_rate():
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.5})
    tx, plain = (
        fomoh_jax.fomoh_kd(3, learning_rate=schedule),
        fomoh_jax.fomoh_kd(3, learning_rate=1.0),
    )
    states = tx.init(PARAMS), plain.init(PARAMS)
    step = [jax.jit(functools.partial(t.update, value_fn=loss)) for t in (tx, plain)]
    for factor in (1.0, 0.5):
        updates, states = zip(
            *(update(None, s, PARAMS, target=TARGET) for update, s in zip(step, states))
        )
        assert_close(updates[0], jax.tree.map(lambda u: factor * u, updates[1]))


@pytest.mark.slow
def test_a_line_search_along_adam_s_direction():
    tx = optax.chain(
        optax.scale_by_adam(),
        fomoh_jax.scale_by_hyperplane(directions.incoming(), solvers.saddle_free()),
        optax.scale_by_learning_rate(0.5),
    )
    values, _, _ = run(tx)
    assert values[-1] < 1 + 1e-3 * (values[0] - 1)


def test_under_inject_hyperparams():
    tx = optax.inject_hyperparams(fomoh_jax.fomoh_kd, static_args="k")(
        k=3, learning_rate=1.0
    )
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.array(0.0)
    updates, state = tx.update(None, state, PARAMS, value_fn=loss, target=TARGET)
    assert_close(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    inject = optax.inject_hyperparams(fomoh_jax.fomoh)
    plain = run(fomoh_jax.fomoh(0.05), steps=3)[0]
    assert run(inject(optax.constant_schedule(0.05)), steps=3)[0] == plain
    with pytest.raises(TypeError, match='static_args="k"'):
        optax.inject_hyperparams(fomoh_jax.fomoh_kd)(k=2).init(PARAMS)


@pytest.mark.slow
def test_around_and_inside_other_transformations():
    # These look at the updates that come in, so they need a tree and not None.
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    wrapped = optax.apply_if_finite(fomoh_jax.fomoh_kd(3, learning_rate=1.0), 3)
    state = wrapped.init(PARAMS)
    updates, _ = wrapped.update(zeros, state, PARAMS, value_fn=loss, target=TARGET)
    assert loss(optax.apply_updates(PARAMS, updates), TARGET) < loss(PARAMS, TARGET)

    mask = {"a": False, "b": True}
    tx = optax.chain(
        fomoh_jax.fomoh_kd(3, learning_rate=0.5),
        optax.masked(optax.set_to_zero(), mask),
    )
    _, params, _ = run(tx, use_grads=False)
    assert params["b"] == PARAMS["b"]
    np.testing.assert_allclose(params["a"], [2.0, 2.0], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(ALIASES))
def test_every_alias_inside_the_optimizer_of_flax_nnx(name):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    optimizer = nnx.Optimizer(model, ALIASES[name](), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(1), (16, 2))
    graph = nnx.graphdef(model)
    value_fn = lambda params: jnp.mean((nnx.merge(graph, params)(x) - 1) ** 2)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, grads, value_fn=value_fn)
        return value

    values = [step(model, optimizer) for _ in range(40)]
    assert values[-1] < 0.3 * values[0]


@pytest.mark.slow
def test_a_step_of_newton_inside_the_optimizer_of_flax_nnx():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    tx = fomoh_jax.fomoh_kd(k=4, learning_rate=1.0)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(1), (16, 3))
    y = x @ jnp.array([[1.0], [2.0], [3.0]]) + 0.5
    graph = nnx.graphdef(model)

    def value_fn(params):
        return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

    @nnx.jit
    def step(model, optimizer):
        zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
        optimizer.update(model, zeros, value_fn=value_fn)

    step(model, optimizer)  # one step of Newton's method on a quadratic
    np.testing.assert_allclose(model.kernel[...], [[1.0], [2.0], [3.0]], rtol=1e-8)
    np.testing.assert_allclose(model.bias[...], [0.5], rtol=1e-8)


@pytest.mark.slow
def test_states_and_runs_vmap_over_keys():
    _, (params, x) = mlp(jnp.tanh)
    fun = mlp(jnp.tanh)[0]

    def final(key):
        tx = fomoh_jax.fomoh_kd(2, learning_rate=0.5, key=key)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(None, state, params, value_fn=fun, x=x)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
        return fun(end, x)

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(final))(keys)
    np.testing.assert_allclose(together[1], jax.jit(final)(keys[1]), rtol=1e-6)
    assert len(set(np.asarray(together).tolist())) == 3
