"""The methods that take the loss of one example, against what they estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import methods
from experiments.minimisation import exact_gradient
from tests.reference import assert_close, normal

PARAMS = {"w": normal(3, 2), "b": normal(2, seed=1)}
BATCH = normal(8, 3, seed=2), normal(8, 2, seed=3)


def loss_of_one(params, example):
    x, y = example
    return jnp.sum((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)


mean = methods.mean_loss(loss_of_one, BATCH)
GRADIENT = jax.jit(jax.grad(mean))(PARAMS)
ESTIMATES = {
    "mezo": methods.mezo(),
    "hizoo": methods.hizoo(smoothing=0.0),
    "lozo": methods.lozo(interval=1),
    "eggroll": methods.eggroll(pairs=4),
    "eggroll of rank 2": methods.eggroll(pairs=8, rank=2),
}


def flat(tree):
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def keyed(state, key):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: key if is_key(x) else x, state)


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_mean_points_along_the_gradient(name):
    tx, count = ESTIMATES[name], 20_000

    def one(key):
        state = keyed(tx.init(PARAMS), key)
        given = {"value_fn": loss_of_one, "batch": BATCH}
        return flat(tx.update(None, state, PARAMS, **given)[0])

    each = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))
    average, error = each.mean(0), each.std(0) / count**0.5
    g = flat(GRADIENT)
    if "eggroll" in name:  # its differences are divided by their size
        cosine = average @ g / jnp.linalg.norm(average) / jnp.linalg.norm(g)
        assert cosine > 0.97
    else:
        assert np.all(np.abs(average - g) < 5 * error + 1e-5)


def test_as_many_tangents_as_parameters_give_the_gradient():
    tx = methods.multi_tangent(len(flat(PARAMS)))
    given = {"value_fn": loss_of_one, "batch": BATCH}
    projected, _ = jax.jit(lambda state: tx.update(None, state, PARAMS, **given))(
        tx.init(PARAMS)
    )
    assert_close(projected, GRADIENT, rtol=1e-6)


@pytest.mark.parametrize("gradient", [jax.grad, jax.jacfwd])
def test_the_exact_gradient(gradient):
    given = {"value_fn": loss_of_one, "batch": BATCH}
    tx = methods.of_mean(exact_gradient(gradient))
    found, _ = tx.update(None, tx.init(PARAMS), PARAMS, **given)
    assert_close(found, GRADIENT, rtol=1e-12)


def test_hizoo_keeps_the_diagonal_of_a_quadratic_loss():
    """In the mean; its steps are long where the curvature is small."""
    h = jnp.array([1.0, 4.0, 9.0])
    loss = lambda x, example: jnp.sum(h * x**2) / 2 + 0 * example
    tx, at = methods.hizoo(smoothing=1e-3, scale=1e-2), jnp.ones(3)

    def step(state, _):
        state = tx.update(None, state, at, value_fn=loss, batch=jnp.zeros(1))[1]
        return state, state.curvature

    _, kept = jax.jit(lambda s: jax.lax.scan(step, s, length=40_000))(tx.init(at))
    average = kept[20_000:].mean(0)
    assert average[0] < average[1] < average[2]


def test_the_right_factors_of_lozo_stay_for_an_interval():
    tx = methods.lozo(rank=1, interval=3)
    given = {"value_fn": loss_of_one, "batch": BATCH}

    def step(state, _):
        update, state = tx.update(None, state, PARAMS, **given)
        return state, update["w"]

    _, steps = jax.jit(lambda s: jax.lax.scan(step, s, length=6))(tx.init(PARAMS))
    rows = steps[:, 0] / jnp.linalg.norm(steps[:, 0], axis=1, keepdims=True)
    along = np.abs(rows @ rows.T)
    np.testing.assert_allclose(along[:3, :3], 1, rtol=1e-6)
    np.testing.assert_allclose(along[3:, 3:], 1, rtol=1e-6)
    assert np.all(along[:3, 3:] < 0.999)


def test_frozen_parameters_stay():
    inner = methods.of_mean(optax.chain(exact_gradient(), optax.sgd(0.1)))
    tx = methods.with_frozen(inner, {"w": True, "b": False})
    given = {"value_fn": loss_of_one, "batch": BATCH}
    step, _ = tx.update(None, tx.init(PARAMS), PARAMS, **given)
    assert not np.any(step["w"])
    assert_close(step["b"], -0.1 * GRADIENT["b"], rtol=1e-12)
