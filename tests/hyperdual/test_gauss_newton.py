"""The Gauss–Newton model against the product of JAX's Jacobian and Hessian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import (
    directions,
    gauss_newton_model,
    plans,
    quadratic_model,
    scale_by_hyperplane,
    solvers,
)
from tests.reference import normal

X, LABELS = jnp.asarray(normal(6, 4)), jnp.array([0, 1, 2, 0, 1, 2])


def outputs(params, x):
    w1, w2 = params
    return {"logits": jnp.tanh(x @ w1) @ w2}


def loss(out):
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(out["logits"], LABELS)
    )


PARAMS = (jnp.asarray(normal(4, 5)), jnp.asarray(normal(5, 3, seed=1)))
V = (jnp.asarray(normal(3, 4, 5, seed=2)), jnp.asarray(normal(3, 5, 3, seed=3)))


@functools.cache
@jax.jit
def expected():
    flat = lambda a: outputs(unravel(a), X)["logits"].ravel()
    a, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    v = jax.vmap(lambda *v: jax.flatten_util.ravel_pytree(v)[0])(*V)
    jacobian = jax.jacrev(flat)(a)
    inner = lambda z: loss({"logits": z.reshape(6, 3)})
    hessian, gradient = jax.hessian(inner)(flat(a)), jax.grad(inner)(flat(a))
    tangents = jacobian @ v.T
    return tangents.T @ gradient, tangents.T @ hessian @ tangents


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["auto", plans.forward(2), plans.adjoint()])
def test_it_is_the_jacobian_s_product_with_the_hessian_of_the_loss(plan):
    model = jax.jit(
        lambda p, v: gauss_newton_model(outputs, loss, (p, X), (v, None), plan=plan)
    )(PARAMS, V)
    slope, curvature = expected()
    np.testing.assert_allclose(model.value, loss(outputs(PARAMS, X)))
    np.testing.assert_allclose(model.slope, slope, rtol=1e-10)
    np.testing.assert_allclose(model.curvature, curvature, rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(model.curvature).min() > -1e-12


@pytest.mark.slow
def test_aux_comes_from_the_outputs():
    both = lambda p, x: (outputs(p, x), jnp.sum(x))
    model, aux = gauss_newton_model(both, loss, (PARAMS, X), (V, None), has_aux=True)
    np.testing.assert_allclose(aux, X.sum())
    np.testing.assert_allclose(model.slope, expected()[0], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.optimised
def test_pairs_of_directions_meet_in_the_loss_alone():
    deep = lambda p, x: outputs((jnp.sin(p[0]), jnp.exp(p[1])), x)
    vectors = jax.tree.map(lambda v: jnp.tile(v, (4, 1, 1)), V)

    def cost(model):
        way = jax.jit(lambda p, v: model((p, X), (v, None)))
        return way.lower(PARAMS, vectors).compile().cost_analysis()["flops"]

    whole = functools.partial(quadratic_model, lambda p, x: loss(deep(p, x)))
    parts = functools.partial(gauss_newton_model, deep, loss)
    assert cost(parts) < 0.5 * cost(whole)


def test_the_optimiser_takes_the_loss_in_two_parts():
    tx = scale_by_hyperplane(
        directions.gaussian(35), solvers.saddle_free(), curvature="gauss_newton"
    )
    residual = lambda params, x: outputs(params, x)["logits"] - 1
    value = lambda out: jnp.sum(out**2) / 2
    update = functools.partial(tx.update, value_fn=value, outputs_fn=residual)
    updates, state = jax.jit(update)(None, tx.init(PARAMS), PARAMS, x=X)
    # As many directions as parameters, but fewer equations: the residual is solved.
    a, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    flat = lambda a: residual(unravel(a), X).ravel()
    step = jax.flatten_util.ravel_pytree(updates)[0]
    projected = jax.jit(jax.jacrev(flat))(a) @ step
    np.testing.assert_allclose(projected, jax.jit(flat)(a), atol=1e-5)
    np.testing.assert_allclose(state.model.value, value(residual(PARAMS, X)))


def test_what_is_missing_or_superfluous_is_named():
    with pytest.raises(ValueError, match="curvature must be"):
        scale_by_hyperplane(directions.gaussian(1), curvature="fisher")
    tx = fomoh_jax.scale_by_hyperplane(directions.gaussian(1), curvature="gauss_newton")
    with pytest.raises(ValueError, match="needs the loss in two parts"):
        tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss)
