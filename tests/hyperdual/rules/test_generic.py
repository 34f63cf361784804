"""The generic rule, and what it does where ``jax.linearize`` cannot follow."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import sparse
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import fomoh_jax
from fomoh_jax.hyperdual import linear
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    assert_hyper_jvp_agrees,
    jitted,
    normal,
    second_jvp,
)


@pytest.mark.parametrize("operation", [lax.mul, lax.add, lax.max])
def test_a_general_reduce_window_whose_derivative_has_no_two_halves(operation):
    fun = lambda x: lax.reduce_window(x**2, 0.5, operation, (2,), (1,), "SAME")
    assert_hyper_jvp_agrees(fun, normal(5))
    directions = (normal(2, 5, seed=1),)
    model = jitted(fomoh_jax.quadratic_model)(fun, (normal(5),), directions)
    v, w = ((row,) for row in directions[0])
    assert_close(model.curvature[0, 1], second_jvp(fun, (normal(5),), v, w)[3])


@pytest.mark.slow
def test_a_user_s_primitive_is_not_mistaken_for_a_private_one_of_the_same_name():
    stack = Primitive("stack")  # which is linear in JAX
    squares = lambda x: jnp.cumsum(x) ** 2
    stack.def_impl(squares)
    stack.def_abstract_eval(lambda x: x)
    ad.primitive_jvps[stack] = lambda primals, tangents: jax.jvp(
        squares, primals, tangents
    )
    batching.primitive_batchers[stack] = lambda args, axes: (
        jax.vmap(squares, axes)(*args),
        0,
    )
    primals, v, w = ((normal(3, seed=i),) for i in range(3))
    ours = fomoh_jax.hyper_jvp(stack.bind, primals, v, w)
    assert_close(ours, second_jvp(squares, primals, v, w))


@pytest.mark.slow
def test_products_over_any_axes_of_any_size():
    each = (None, 0, 1, (0, 2), ())
    assert_hyper_jvp_agrees(
        lambda x: [jnp.prod(jnp.tanh(x), axis=axes) ** 2 for axes in each],
        normal(2, 3, 2),
    )
    for shape, axis in (((2, 0), 0), ((0, 2), 0), ((0, 2), 1)):
        fun = lambda x: jnp.sum(jnp.prod(x, axis=axis))
        hessian = jax.jit(fomoh_jax.hessian(fun))(jnp.zeros(shape))
        assert hessian.shape == (*shape, *shape)
    reverse = lambda x: lax.cumprod(jnp.tanh(x), axis=1, reverse=True)
    assert_agrees_with_nested_jvp(reverse, normal(2, 4), k=2)
    assert_hyper_jvp_agrees(lambda x: lax.cumlogsumexp(x, reverse=True), normal(4))


def test_a_batching_rule_that_wants_the_leading_axis():
    places = jnp.array([[0, 0], [1, 2], [2, 1]])
    chosen = sparse.BCOO((jnp.ones(3), places), shape=(3, 3))
    fun = lambda x: (chosen * jnp.outer(x, x)).sum()
    expected = jnp.array([[2.0, 0, 0], [0, 0, 2], [0, 2, 0]])
    assert_close(jax.jit(fomoh_jax.hessian(fun))(jnp.ones(3)), expected)


@pytest.mark.parametrize("rule", [linear, None])
def test_a_users_batching_rule_that_knows_the_leading_axis_alone(rule):
    double = Primitive("double_leading")
    double.def_impl(lambda x: 2 * x)
    double.def_abstract_eval(lambda x: x)
    mlir.register_lowering(
        double, mlir.lower_fun(lambda x: 2 * x, multiple_results=False)
    )
    ad.deflinear(double, lambda ct: [double.bind(ct)])

    def batched(args, axes):
        assert axes == (0,)
        return double.bind(*args), 0

    batching.primitive_batchers[double] = batched
    if rule is not None:
        fomoh_jax.register_rule(double)(rule)
    # A matrix product leaves the directions behind the rows.
    fun = lambda w: jnp.sum(double.bind(normal(3, 2) @ w) ** 2)
    plain = lambda w: jnp.sum((2 * normal(3, 2) @ w) ** 2)
    w = normal(2, 2)
    expected = jax.jit(jax.hessian(plain))(w)
    assert_close(jax.jit(fomoh_jax.hessian(fun))(w), expected)
