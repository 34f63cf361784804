"""Directions of low rank, which are kept as their factors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import LowRank, directions, plans, solvers
from fomoh_jax._span import combination, gram
from tests.reference import assert_close, normal, partly_slow

KEY = jax.random.key(0)
PARAMS = {
    "in": normal(5, 6),
    "bias": normal(6, seed=1),
    "turned": normal(7, 6, seed=2),
    "left": normal(4, 7, seed=3),
    "out": normal(4, 3, seed=4),
}
X = normal(8, 5, seed=5)


def network(p, x):
    """Products from either side, with the matrix, with its transpose, and scaled."""
    h = jnp.tanh(x @ p["in"] + p["bias"])
    h = jax.nn.gelu(h @ p["turned"].T)
    h = jnp.sin(jax.vmap(lambda row: p["left"] @ row)(h))
    return h @ (-2 * p["out"])


PROGRAMS = {
    "network": lambda p: jnp.mean(network(p, X) ** 2),
    "several outputs": lambda p: jnp.mean(network(p, X), axis=0),
    "sequences": lambda p: jnp.sum(
        jnp.tanh(jnp.einsum("bti,ij->btj", X.reshape(2, 4, 5), p["in"])) ** 3
    ),
    "weights times weights": lambda p: jnp.sum(
        jnp.sin(p["in"] @ p["turned"].T @ p["left"].T @ p["out"])
    ),
    "elementwise": lambda p: sum(jnp.sum(jnp.exp(x / 5)) for x in p.values()),
    "a row": lambda p: jnp.sum(jnp.tanh(p["in"][2] @ p["turned"].T)),
    "in a loop": lambda p: jnp.sum(
        jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["in"][:, :5]), None), X, length=2)[0]
    ),
    "another precision": lambda p: jnp.sum(
        jnp.tanh(X.astype(jnp.float32) @ p["in"].astype(jnp.float32))
    ).astype(jnp.float64),
}
PLANS = {
    "forward": plans.forward(),
    "chunks": plans.forward(chunk_size=2),
    "adjoint": plans.adjoint(),
}


def drawn(k, rank):
    return directions.low_rank(k, rank).sample(KEY, PARAMS, None)


def dense(vectors):
    is_low_rank = lambda x: isinstance(x, LowRank)
    return jax.tree.map(
        lambda x: x.dense() if is_low_rank(x) else x, vectors, is_leaf=is_low_rank
    )


def both(compute, vectors):
    """With factors, and with the same directions multiplied out."""
    return jax.jit(compute)(vectors), jax.jit(compute)(dense(vectors))


@pytest.mark.parametrize("name", partly_slow(PROGRAMS))
def test_the_model_is_that_of_the_directions_multiplied_out(name):
    fun, rtol = PROGRAMS[name], 1e-5 if name == "another precision" else 1e-10

    def computed(v):
        given = fun, (PARAMS,), (v,)
        model = fomoh_jax.quadratic_model(*given)
        return model, fomoh_jax.directional_curvature(*given)

    assert_close(*both(computed, drawn(3, 2)), rtol=rtol)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_takes_them(plan):
    def computed(v):
        fun = PROGRAMS["network"]
        return fomoh_jax.quadratic_model(fun, (PARAMS,), (v,), plan=PLANS[plan])

    assert_close(*both(computed, drawn(4, 1)), rtol=1e-10)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("k", "rank"), [(1, 1), (1, 3), (5, 2)])
def test_gram_matrix_and_combination(k, rank):
    def computed(v):
        coefficients = jnp.arange(1.0, k + 1)
        return gram(v), combination(coefficients, v, jnp.float64)

    assert_close(*both(computed, drawn(k, rank)), rtol=1e-12)


@pytest.mark.slow
def test_the_optimiser_takes_the_steps_of_the_same_directions_multiplied_out():
    source = directions.low_rank(3, rank=2)
    stored = directions.Directions(3, lambda *given: dense(source.sample(*given)))

    def trained(source):
        link = fomoh_jax.scale_by_hyperplane(source, solvers.self_tuning(), key=KEY)
        tx = optax.chain(link, optax.scale_by_learning_rate(1.0))

        def step(carry, _):
            params, state = carry
            given = {"value_fn": PROGRAMS["network"]}
            updates, state = tx.update(None, state, params, **given)
            return (optax.apply_updates(params, updates), state), state[0].model.value

        carry = PARAMS, tx.init(PARAMS)
        return jax.lax.scan(step, carry, length=30)

    (actual, _), losses = jax.jit(trained, static_argnums=0)(source)
    (expected, _), _ = jax.jit(trained, static_argnums=0)(stored)
    assert_close(actual, expected, rtol=1e-6)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_they_have_the_identity_as_covariance():
    source = directions.low_rank(20_000, rank=2)
    v = source.sample(KEY, {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)}, None)
    flat = jnp.concatenate([v["w"].dense().reshape(-1, 6), v["b"]], axis=1)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(8), atol=0.08)


@pytest.mark.slow
def test_in_a_sum_they_are_multiplied_out():
    source = directions.low_rank(2) + directions.incoming()
    v = source.sample(KEY, PARAMS, PARAMS)
    assert v["in"].k == len(v["bias"]) == 3
    np.testing.assert_array_equal(v["in"].dense()[2], PARAMS["in"])


@pytest.mark.optimised
def test_they_are_never_multiplied_out_in_a_step_but_for_their_sum():
    """And take fewer operations by far than directions that are."""
    n, k = 64, 4
    params = {"a": normal(n, n).astype("f4"), "b": normal(n, n, seed=1).astype("f4")}
    x = normal(16, n, seed=2).astype("f4")

    def compiled(source):
        link = fomoh_jax.scale_by_hyperplane(source, solvers.self_tuning())

        def loss(p):
            return jnp.mean((jax.nn.relu(x @ p["a"]) @ p["b"]) ** 2)

        def step(params, state):
            return link.update(None, state, params, value_fn=loss)

        return jax.jit(step).lower(params, link.init(params)).compile()

    ours, stored = map(compiled, (directions.low_rank(k), directions.gaussian(k)))
    assert re.search(rf"f32\[{k},{n},{n}\]", stored.as_text())
    assert not re.search(
        rf"f32\[({k},{n},{n}|{n},{k},{n}|{n},{n},{k})\]", ours.as_text()
    )
    flops = lambda program: program.cost_analysis()["flops"]
    assert flops(ours) < 0.45 * flops(stored)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((0,), ValueError, "k must be at least 1"),
        ((2, 0), ValueError, "rank must be at least 1"),
        ((2, 1.0), TypeError, "rank must be"),
    ],
)
def test_what_may_come(given, error, message):
    with pytest.raises(error, match=message):
        directions.low_rank(*given)


def test_factors_of_another_shape_are_refused():
    v = LowRank(normal(2, 5, 1), normal(2, 7, 1))
    with pytest.raises(ValueError, match=r"\[k, 5, 6\].*got \[2, 5, 7\]"):
        fomoh_jax.quadratic_model(lambda w: jnp.sum(w**2), (PARAMS["in"],), (v,))
