"""Directions that are made where they are needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import Deferred, directions, plans, solvers
from tests.reference import assert_close, normal, partly_slow, slow

KEY = jax.random.key(0)
STORED = directions.gaussian(3)
DEFERRED = directions.deferred(STORED)
LAYERWISE = directions.layerwise(by="leaf")
MASK = {"w": True, "b": False, "scale": True}


def params():
    return {"w": normal(4, 4), "b": normal(4, seed=1), "scale": normal(seed=2)}


def body(p, x):
    return jnp.tanh(x @ p["w"] + p["b"]) * p["scale"]


@jax.custom_vjp
def seen_through(p, x):
    return body(p, x)


seen_through.defvjp(lambda p, x: (body(p, x), None), lambda res, ct: (None, ct))


def written(x):
    ref = jax.new_ref(jnp.zeros_like(x))
    ref[...] = x
    return ref[...]


# Where an equation takes the parameters: in the function itself, inside of calls, in
# loops and branches, twice, and not at all.
PROGRAMS = {
    "plain": body,
    "jit": jax.jit(body),
    "remat": jax.checkpoint(body),
    "custom_vjp": seen_through,
    "jit in jit": jax.jit(lambda p, x: jax.jit(body)(p, x) + p["b"]),
    "cond": lambda p, x: jax.lax.cond(x[0, 0] > 0, body, lambda p, x: 2 * x, p, x),
    "scan": lambda p, x: jax.lax.scan(lambda c, _: (body(p, c), None), x, length=3)[0],
    "scan over": lambda p, x: jax.lax.scan(
        lambda c, w: (jnp.tanh(c @ w[:, None]) + c, None), x, p["w"]
    )[0],
    "while": lambda p, x: jax.lax.while_loop(
        lambda c: jnp.sum(c) > 1, lambda c: body(p, c) / 2, x
    ),
    "twice": lambda p, x: body(p, x) @ p["w"] + jnp.sum(p["b"] * p["b"]),
    "mutable": lambda p, x: written(p["w"]) @ p["b"] + x[0],
    "beside NaN": lambda p, x: jnp.nanmean(jnp.where(x > 0, p["b"] * x, jnp.nan)),
    "NaN": lambda p, x: jnp.where(jnp.isnan(x * jnp.nan), p["b"], x * jnp.nan),
    "untouched": lambda p, x: (p["w"], 2 * x),
}


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", partly_slow(PROGRAMS))
def test_the_model_is_that_of_stored_directions(name):
    fun, p, x = PROGRAMS[name], params(), normal(2, 4, seed=3)
    model = lambda source: jax.jit(
        lambda key: fomoh_jax.quadratic_model(
            fun, (p, x), (source.sample(key, p, None), None)
        )
    )(KEY)
    assert_close(model(DEFERRED), model(STORED))


@pytest.mark.slow
@pytest.mark.parametrize("plan", [plans.forward(2), plans.adjoint()])
def test_every_way_to_the_model_makes_them(plan):
    p, x = params(), normal(2, 4, seed=3)
    loss = lambda p: jnp.sum(body(p, x) ** 2)
    model = lambda source: jax.jit(
        lambda key: fomoh_jax.quadratic_model(
            loss, (p,), (source.sample(key, p, None),), plan=plan
        )
    )(KEY)
    assert_close(model(DEFERRED), model(STORED))


@pytest.mark.slow
def test_other_transformations_take_them():
    p, x = params(), normal(2, 4, seed=3)
    loss = lambda p: jnp.sum(body(p, x) ** 2)
    stored, deferred = (s.sample(KEY, p, None) for s in (STORED, DEFERRED))
    assert_close(
        fomoh_jax.directional_curvature(loss, (p,), (deferred,)),
        fomoh_jax.directional_curvature(loss, (p,), (stored,)),
    )


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("stored", "deferred"),
    [
        (STORED, DEFERRED),
        slow(
            directions.sparse(2, 0.5),
            directions.deferred(directions.sparse(2, 0.5)),
        ),
        slow(STORED + directions.history(2), DEFERRED + directions.history(2)),
        (
            directions.layerwise(by="leaf") + STORED,
            directions.layerwise(by="leaf") + DEFERRED,
        ),
        slow(directions.masked(STORED, MASK), directions.masked(DEFERRED, MASK)),
    ],
    ids=["gaussian", "sparse", "history", "layerwise", "masked"],
)
def test_an_optimiser_takes_the_same_steps(stored, deferred):
    x = normal(8, 4, seed=3)
    loss = lambda p: jnp.mean(body(p, x) ** 2)

    def trained(source):
        tx = fomoh_jax.scale_by_hyperplane(source, solvers.saddle_free())
        update = jax.jit(lambda p, state: tx.update(None, state, p, value_fn=loss))
        p = params()
        state = tx.init(p)
        for _ in range(2):
            step, state = update(p, state)
            p = jax.tree.map(lambda p, s: p - 0.1 * s, p, step)
        return p

    assert_close(trained(deferred), trained(stored), rtol=1e-8)


def test_a_forward_gradient_is_the_same():
    loss = lambda p: jnp.sum(body(p, jnp.ones((2, 4))))

    def gradient(source):
        tx = fomoh_jax.scale_by_forward_gradient(source)
        return tx.update(None, tx.init(params()), params(), value_fn=loss)[0]

    assert_close(gradient(DEFERRED), gradient(STORED))


@pytest.mark.slow
def test_a_leaf_is_a_key_and_passes_through_jit_and_vmap():
    keys = jax.random.split(KEY, 2)
    traced = 0

    @jax.jit
    def make(key):
        nonlocal traced
        traced += 1
        return DEFERRED.sample(key, params(), None)

    for key in keys:
        tree = make(key)
    assert traced == 1
    assert all(jnp.shape(leaf) == () for leaf in jax.tree.leaves(tree))

    def slope(key):
        v = DEFERRED.sample(key, params(), None)
        loss = lambda p: jnp.sum(p["w"] ** 2)
        return fomoh_jax.quadratic_model(loss, (params(),), (v,)).slope

    each = np.stack(list(map(jax.jit(slope), keys)))
    assert_close(jax.jit(jax.vmap(slope))(keys), each)


@pytest.mark.slow
@pytest.mark.parametrize("impl", [slow("threefry2x32"), "rbg"])
def test_a_batch_of_parameters_takes_the_same_steps(impl):
    # Of a batch of keys, rbg makes other numbers than of each of them.
    batch = jax.vmap(lambda s: jax.tree.map(lambda leaf: s * leaf, params()))(
        jnp.array([1.0, 0.5])
    )
    loss = lambda p: jnp.sum(body(p, jnp.ones((2, 4))) ** 2)

    def steps(source):
        tx = fomoh_jax.scale_by_hyperplane(
            source, solvers.saddle_free(), key=jax.random.key(3, impl=impl)
        )
        one = lambda p: tx.update(None, tx.init(p), p, value_fn=loss)[0]
        return jax.jit(jax.vmap(one))(batch)

    assert_close(steps(DEFERRED), steps(STORED), rtol=1e-8)


@pytest.mark.slow
def test_not_a_number_stays_one_and_gives_no_step():
    tx = fomoh_jax.scale_by_hyperplane(DEFERRED)
    p = params() | {"b": jnp.full(4, jnp.nan)}
    loss = lambda p: jnp.sum(body(p, jnp.ones((2, 4))))
    step, state = jax.jit(functools.partial(tx.update, value_fn=loss))(
        None, tx.init(p), p
    )
    assert np.isnan(state.model.value)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(step))


def test_what_cannot_be_made_leaf_by_leaf_is_refused():
    for base in (directions.orthonormal(2), directions.incoming(), STORED + STORED):
        with pytest.raises(ValueError, match=r"gaussian, rademacher or sparse"):
            directions.deferred(base)
    with pytest.raises(TypeError, match="base must be a source of directions; got 3"):
        directions.deferred(3)
    with pytest.raises(ValueError, match="layerwise cannot cut directions that are"):
        directions.layerwise(DEFERRED).sample(KEY, params(), None)


def test_what_is_made_must_be_what_was_declared():
    make = lambda key: jax.random.normal(key, (3, 4))
    leaf = Deferred(KEY, make, (2, 4), jnp.dtype("float64"))
    with pytest.raises(ValueError, match=r"directions\[0\].make must .*got \[3, 4\]"):
        fomoh_jax.quadratic_model(jnp.sum, (jnp.ones(4),), (leaf,))


def test_a_wrong_shape_or_dtype_is_named():
    make = lambda key: jax.random.normal(key, (2, 3))
    leaf = lambda shape, dtype: Deferred(KEY, make, shape, jnp.dtype(dtype))
    model = lambda v: fomoh_jax.quadratic_model(
        jnp.sum, (jnp.ones(3, "float32"),), (v,)
    )
    with pytest.raises(ValueError, match=r"shape \[k, 3\].*got \[2, 4\]"):
        model(leaf((2, 4), "float32"))
    with pytest.raises(TypeError, match="dtype of its primal, float32; got float64"):
        model(leaf((2, 3), "float64"))


def bytes_of_a_step(source, layers, width, impl="threefry2x32"):
    """Temporaries of a step of a tanh network, and the bytes of its parameters."""

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w.T)
        return jnp.mean(x**2) + sum(jnp.sum(w**2) for w in weights)

    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    network = [shape(width, width) for _ in range(layers)]
    key = jax.random.key(0, impl=impl)
    tx = fomoh_jax.scale_by_hyperplane(source, solvers.saddle_free(), key=key)

    def step(p, state, x):
        updates, state = tx.update(None, state, p, value_fn=loss, x=x)
        return optax.apply_updates(p, updates), state

    compiled = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(network, jax.eval_shape(tx.init, network), shape(16, width))
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes, 4 * layers * width**2


@pytest.mark.slow
@pytest.mark.optimised
def test_directions_made_anew_exist_for_one_leaf_at_a_time():
    deferred = directions.deferred(directions.rademacher(4))
    # By a generator that is one operation, and not a hundred to compile for each leaf.
    (few, size), (many, more) = (
        bytes_of_a_step(deferred, n, 128, impl="rbg") for n in (2, 6)
    )
    # The step itself, and nothing of the four directions of the other layers.
    assert many - few < 1.2 * (more - size)


@pytest.mark.optimised
@pytest.mark.slow
def test_50_million_parameters_and_four_directions():
    stored, size = bytes_of_a_step(directions.gaussian(4), 12, 2048)
    deferred, _ = bytes_of_a_step(directions.deferred(directions.gaussian(4)), 12, 2048)
    assert size > 4 * 50e6
    assert stored > 16 * size
    assert deferred < 4 * size
