"""The gradient transformations: what they return, keep, accept and refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import _span, directions, plans, solvers
from fomoh_jax._hyperdual.channels import is_channel
from tests.programs import mlp, rosenbrock
from tests.reference import assert_close, normal, slow

PARAMS = jnp.array([1.0, -2.0, 0.5])


def updated(tx, params=PARAMS, grads=None, *, value_fn, **extra_args):
    """The first step and the state after it, in one compilation."""
    update = jax.jit(functools.partial(tx.update, value_fn=value_fn))
    return update(grads, tx.init(params), params, **extra_args)


def quadratic(x, target=0.0):
    return jnp.sum((x - target) ** 2)


@functools.partial(jax.jit, static_argnums=0)
def newton_step(loss, x):
    return jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))


def fixed(vectors):
    """A source that always gives the same directions."""
    return directions.Directions(len(vectors), lambda key, params, updates: vectors)


@pytest.mark.slow
def test_the_identity_gives_newton_s_step():
    tx = fomoh_jax.scale_by_hyperplane(fixed(jnp.eye(3)))
    step, _ = updated(tx, value_fn=rosenbrock)
    expected = newton_step(rosenbrock, PARAMS)
    np.testing.assert_allclose(step, expected, rtol=1e-8)


@pytest.mark.slow
def test_any_invertible_directions_give_newton_s_step():
    loss, (params, x) = mlp(jnp.tanh)
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    on_flat = lambda p: loss(unflatten(p), x) + 0.1 * jnp.sum(p**2)
    expected = newton_step(on_flat, flat)
    tx = fomoh_jax.scale_by_hyperplane(directions.gaussian(flat.size))
    value_fn = lambda p: on_flat(jax.flatten_util.ravel_pytree(p)[0])
    step, _ = updated(tx, params, value_fn=value_fn)
    actual = jax.flatten_util.ravel_pytree(step)[0]
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < 1e-8


@pytest.mark.slow
def test_the_forward_gradient_averages_over_its_directions():
    v = normal(4, 3)
    tx = fomoh_jax.scale_by_forward_gradient(fixed(v))
    step, state = tx.update(None, tx.init(PARAMS), PARAMS, value_fn=rosenbrock)
    gradient = jax.grad(rosenbrock)(PARAMS)
    np.testing.assert_allclose(step, v.T @ (v @ gradient) / 4, rtol=1e-10)
    np.testing.assert_allclose(state.slope, v @ gradient, rtol=1e-10)


@pytest.mark.slow
def test_the_state_holds_the_model_of_the_evaluated_point():
    v = normal(2, 3)
    tx = fomoh_jax.scale_by_hyperplane(fixed(v))
    step, state = updated(tx, value_fn=rosenbrock)
    hessian = jax.jit(jax.hessian(rosenbrock))(PARAMS)
    assert_close(state.model.value, rosenbrock(PARAMS))
    assert_close(state.model.curvature, v @ hessian @ v.T)
    np.testing.assert_allclose(v.T @ state.coefficients, step, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_give_the_same_step(chunk_size):
    make = functools.partial(fomoh_jax.scale_by_hyperplane, directions.gaussian(3))
    steps = [
        tx.update(None, tx.init(PARAMS), PARAMS, value_fn=rosenbrock)[0]
        for tx in (make(), make(plan=plans.forward(chunk_size)))
    ]
    np.testing.assert_allclose(*steps, rtol=1e-8)


def network(layers=3, width=5):
    """A tanh network with layers in pairs, and a batch to fit.

    Of these very numbers: whether sixty steps without damping reduce a loss depends on
    where they start.
    """

    def drawn(*shape, seed=0):
        return jax.random.normal(jax.random.key(seed), shape)

    params = [
        (drawn(width, width, seed=seed) / width**0.5, 0.1 * drawn(width, seed=seed))
        for seed in range(layers)
    ]

    def loss(params, x, y):
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return jnp.mean((x - y) ** 2)

    batch = {"x": drawn(8, width, seed=7), "y": 0.5 * jnp.tanh(drawn(8, width))}
    return loss, params, batch


def written_out(source):
    """The same directions without knowing which of them are zero."""

    def sample(key, params, updates):
        tree = source.sample(key, params, updates)
        return jax.tree.map(
            lambda v: v.dense() if is_channel(v) else v, tree, is_leaf=is_channel
        )

    return directions.Directions(source.size, sample)


SOURCES = {
    "layerwise": directions.layerwise(),
    "leafwise": directions.layerwise(by="leaf"),
    "gaussian + layerwise": directions.gaussian(2) + directions.layerwise(),
    "of the gradient": directions.layerwise(directions.incoming()),
}
PARTLY_SLOW = [
    slow(n) if n in ("layerwise", "gaussian + layerwise") else n for n in SOURCES
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTLY_SLOW)
def test_layerwise_takes_the_step_of_the_equal_dense_directions(name):
    loss, params, batch = network()
    grads = jax.grad(loss)(params, **batch)
    step = {}
    for source in (SOURCES[name], written_out(SOURCES[name])):
        tx = fomoh_jax.scale_by_hyperplane(source, solvers.damped())
        state = tx.init(params)
        updates, after = jax.jit(functools.partial(tx.update, value_fn=loss))(
            grads, state, params, **batch
        )
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, after)
        step[source] = (updates, after.coefficients)
    assert_close(*step.values(), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTLY_SLOW)
def test_the_forward_gradient_along_layers_is_that_of_the_dense_directions(name):
    loss, params, batch = network()
    grads = jax.grad(loss)(params, **batch)
    steps = []
    for source in (SOURCES[name], written_out(SOURCES[name])):
        tx = fomoh_jax.scale_by_forward_gradient(source)
        updates, after = updated(tx, params, grads, value_fn=loss, **batch)
        count = (source.count(params),)
        assert tx.init(params).slope.shape == after.slope.shape == count
        steps.append(updates)
    assert_close(*steps)


@pytest.mark.slow
def test_the_gram_matrix_is_that_of_the_dense_directions():
    _, params, _ = network()
    for source in (SOURCES["gaussian + layerwise"], SOURCES["leafwise"]):
        samples = [
            s.sample(jax.random.key(0), params, None)
            for s in (source, written_out(source))
        ]
        leaves = jax.tree.leaves(samples[1])
        flat = jnp.concatenate([v.reshape(len(v), -1) for v in leaves], 1)
        for sample in samples:
            gram = jax.jit(_span.gram, static_argnums=1)(sample, jnp.float64)
            assert_close(gram, flat @ flat.T)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "chunk_size"), [(directions.gaussian(2), 2), (directions.incoming(), None)]
)
def test_layerwise_reduces_a_loss_in_a_scan(base, chunk_size):
    loss, params, batch = network()
    source = directions.layerwise(base)
    tx = optax.chain(
        fomoh_jax.scale_by_hyperplane(
            source, solvers.saddle_free(), plan=plans.forward(chunk_size)
        ),
        optax.scale_by_learning_rate(0.2),
    )

    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(params, **batch)
        updates, state = tx.update(grads, state, params, value_fn=loss, **batch)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda carry: jax.lax.scan(step, carry, length=60)[0])
    after, state = train((params, tx.init(params)))
    assert loss(after, **batch) < 0.5 * loss(params, **batch)
    assert optax.tree.get(state, "curvature").shape == (source.count(params),) * 2


@pytest.mark.optimised
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *map(slow, ("float16", "float32")), "float64"]
)
def test_parameters_keep_their_dtype_and_the_system_is_solved_in_float32(dtype):
    params = {"a": jnp.ones(3, dtype), "b": jnp.zeros((), dtype)}
    loss = lambda p: jnp.sum(p["a"] ** 2) + (p["b"] - 1) ** 2
    tx = fomoh_jax.fomoh_kd(k=4, learning_rate=1.0)
    state = tx.init(params)
    updates, state = jax.jit(functools.partial(tx.update, value_fn=loss))(
        None, state, params
    )
    assert all(u.dtype == dtype for u in jax.tree.leaves(updates))
    new = optax.apply_updates(params, updates)
    assert all(p.dtype == dtype for p in jax.tree.leaves(new))
    solved_in = "float64" if dtype == "float64" else "float32"
    assert optax.tree.get(state, "coefficients").dtype == solved_in
    assert optax.tree.get(state, "curvature").dtype == solved_in
    assert loss(new) < 0.2 * loss(params)


def test_a_tree_of_several_dtypes_is_solved_in_that_of_the_most_precision():
    leaves = [jnp.ones(2, dtype) for dtype in ("float32", "float64", "float16")]
    state = fomoh_jax.fomoh_kd(2).init(leaves)
    assert optax.tree.get(state, "coefficients").dtype == "float64"


def test_value_fn_gets_what_it_names_and_not_what_others_need():
    tx = fomoh_jax.fomoh_kd(3, learning_rate=1.0)
    state = tx.init(PARAMS)
    target = jnp.array([1.0, 2.0, 3.0])

    def keyword_only(x, *, target):
        return quadratic(x, target)

    def everything(x, **kwargs):
        assert set(kwargs) == {"target", "value"}
        return quadratic(x, kwargs["target"])

    @functools.wraps(quadratic)
    def wrapper(*args, **kwargs):
        return quadratic(*args, **kwargs)

    partial = functools.partial(quadratic)
    for value_fn in (quadratic, keyword_only, everything, wrapper, partial):
        updates, _ = tx.update(
            None, state, PARAMS, value_fn=value_fn, target=target, value=1.0
        )
        np.testing.assert_allclose(PARAMS + updates, target, rtol=1e-8)


@pytest.mark.slow
def test_aux_of_the_evaluated_point_is_in_the_state():
    def loss(x, scale):
        return scale * quadratic(x), {"x": x, "n": 3}

    struct = {"x": PARAMS, "n": jax.ShapeDtypeStruct((), int)}
    for make in (fomoh_jax.fomoh, fomoh_jax.fgd):
        tx = make(0.1, has_aux=True, aux_struct=struct)
        state = tx.init(PARAMS)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(None, state, params, value_fn=loss, scale=2.0)
            aux = optax.tree.get(state, "aux")
            return (optax.apply_updates(params, updates), state), aux["x"] - params

        (_, state), difference = jax.lax.scan(step, (PARAMS, state), length=3)
        np.testing.assert_array_equal(difference, 0)
        assert optax.tree.get(state, "aux")["n"] == 3
    bare = fomoh_jax.scale_by_hyperplane(directions.gaussian(1), has_aux=True)
    state = bare.init(PARAMS)
    assert state.aux is None
    _, state = bare.update(None, state, PARAMS, value_fn=loss, scale=1.0)
    assert_close(state.aux["x"], PARAMS)


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("alias", ["fgd", "fomoh", "fomoh_kd", "fomoh_bp"])
def test_a_non_finite_loss_gives_a_zero_step_and_a_usable_state(alias):
    make = getattr(fomoh_jax, alias)
    tx = make(2, learning_rate=1.0) if alias == "fomoh_kd" else make(1e-2)
    loss = lambda x, offset: quadratic(x) * (1 + offset) + offset
    update = jax.jit(functools.partial(tx.update, value_fn=loss))
    grads = jax.grad(quadratic)(PARAMS)
    for bad in (np.nan, np.inf, -np.inf):
        updates, state = update(grads, tx.init(PARAMS), PARAMS, offset=bad)
        np.testing.assert_array_equal(updates, 0)
        updates, state = update(grads, state, PARAMS, offset=0.0)
        assert np.all(np.isfinite(updates)) and np.any(updates != 0)
        assert np.isfinite(optax.tree.get(state, "value"))


@pytest.mark.slow
def test_a_non_finite_incoming_update_gives_a_zero_step():
    tx = fomoh_jax.fomoh_bp(1.0)
    grads = PARAMS.at[0].set(jnp.nan)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=quadratic)
    np.testing.assert_array_equal(updates, 0)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["newton", "saddle_free", "damped"])
@pytest.mark.parametrize("loss", [lambda x: jnp.sum(x), lambda x: 0.0 * jnp.sum(x)])
def test_an_all_zero_hessian_gives_a_finite_step(solver, loss):
    tx = fomoh_jax.fomoh_kd(2, learning_rate=1.0, solver=getattr(solvers, solver)())
    updates, state = tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss)
    assert np.all(np.isfinite(updates))
    # There is no reduction to report before the second model.
    state = state[0]._replace(key=0, actual_reduction=0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_more_directions_than_parameters_is_singular_and_finite():
    for solver in (solvers.newton(), solvers.saddle_free(), solvers.damped()):
        tx = fomoh_jax.fomoh_kd(5, learning_rate=1.0, solver=solver)
        updates, _ = updated(tx, value_fn=quadratic)
        assert np.all(np.isfinite(updates))
        assert quadratic(PARAMS + updates) < quadratic(PARAMS)


def update(params=PARAMS, value_fn=quadratic, updates=None, tx=None, **kwargs):
    tx = fomoh_jax.fomoh_kd(2, learning_rate=1.0) if tx is None else tx
    state = tx.init(PARAMS)
    return tx.update(updates, state, params, value_fn=value_fn, **kwargs)


def test_missing_params_and_value_fn_are_named():
    with pytest.raises(ValueError, match="update needs the current params"):
        update(params=None)
    with pytest.raises(ValueError, match="the loss as value_fn"):
        update(value_fn=None)


def test_a_loss_that_is_no_real_scalar_is_refused():
    with pytest.raises(TypeError, match=r"floating-point scalar; got shape \[3\]"):
        update(value_fn=lambda x: x)
    with pytest.raises(TypeError, match="dtype complex128"):
        update(value_fn=lambda x: jnp.sum(x) * 1j)
    with pytest.raises(TypeError, match="dtype int64"):
        update(value_fn=lambda x: jnp.argmax(x))
    with pytest.raises(TypeError, match="set has_aux=True"):
        update(value_fn=lambda x: (jnp.sum(x), x))
    with pytest.raises(TypeError, match="must return a pair"):
        update(tx=fomoh_jax.fomoh(1.0, has_aux=True))


def test_parameters_that_are_no_real_numbers_are_refused():
    tx = fomoh_jax.fomoh_kd(2, learning_rate=1.0)
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int64"):
        tx.init({"n": jnp.array(1), "x": PARAMS})
    with pytest.raises(TypeError, match=r"params\['z'\] has dtype complex128"):
        tx.init({"z": jnp.array(1j)})
    with pytest.raises(ValueError, match="params holds no array"):
        tx.update(None, tx.init({}), {}, value_fn=quadratic)


def test_masked_parameters_are_refused_with_a_way_out():
    tx = optax.masked(fomoh_jax.fomoh_kd(2, learning_rate=1.0), {"a": True, "b": False})
    with pytest.raises(
        TypeError, match=r"params\['b'\] is masked out.*directions\.masked"
    ):
        tx.init({"a": PARAMS, "b": PARAMS})


def test_sizes_are_checked_at_construction():
    with pytest.raises(ValueError, match="k must be at least 1"):
        fomoh_jax.fomoh_kd(0, learning_rate=1.0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        fomoh_jax.fomoh_kd(1, learning_rate=1.0, plan=plans.forward(0))


def test_keys_may_be_seeds_typed_or_legacy():
    for key in (3, jax.random.key(3), jax.random.PRNGKey(3), np.int32(3)):
        tx = fomoh_jax.fomoh(1.0, key=key)
        state = tx.init(PARAMS)
        assert_close(
            jax.random.key_data(optax.tree.get(state, "key")),
            jax.random.key_data(jax.random.key(3)),
        )


def test_what_is_no_source_or_solver_is_refused_with_a_hint():
    with pytest.raises(TypeError, match=r"solver must be a Solver.*forget to call it"):
        fomoh_jax.fomoh_kd(2, solver=solvers.newton)
    with pytest.raises(TypeError, match=r"solver must be a Solver.*got 'newton'"):
        fomoh_jax.scale_by_hyperplane(directions.gaussian(1), "newton")
    for make in (fomoh_jax.scale_by_hyperplane, fomoh_jax.scale_by_forward_gradient):
        with pytest.raises(TypeError, match=r"directions must be.*forget to call it"):
            make(directions.incoming)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "solver", ["newton", "saddle_free", "damped", "trust_region", "self_tuning"]
)
def test_nothing_is_promoted_that_jax_is_told_not_to(solver, dtype):
    tx = fomoh_jax.fomoh_kd(2, solver=getattr(solvers, solver)())
    params = PARAMS.astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(None, state, params, value_fn=quadratic)
            params = optax.apply_updates(params, updates)
    assert quadratic(params) < quadratic(PARAMS.astype(dtype))
