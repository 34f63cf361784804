"""Roots of functions with a custom_vjp inside, which JAX differentiates forwards."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fomoh_jax
from tests.reference import assert_close, normal, slow


@jax.custom_vjp
def only_backward(x):
    return jnp.sin(x) * x


def derivative(x):
    return jnp.sin(x) + x * jnp.cos(x)


only_backward.defvjp(lambda x: (only_backward(x), x), lambda x, g: (g * derivative(x),))
plain = lambda x: jnp.sin(x) * x


def by_iteration(linear, b):
    return lax.fori_loop(0, 80, lambda _, x: x - 0.4 * (linear(x) - b), b)


def by_krylov(linear, b):
    return jax.scipy.sparse.linalg.bicgstab(linear, b, tol=1e-14)[0]


def root(a, function, tangent_solve):
    """``y`` with ``y (2 + a₀) + function(a y) / 10 = a²``."""

    def residual(y):
        return (2 + a[0]) * y + 0.1 * function(a * y) - a**2

    def solve(f, y):
        return lax.fori_loop(0, 80, lambda _, y: y - 0.4 * f(y), y)

    return lax.custom_root(residual, jnp.zeros_like(a), solve, tangent_solve)


SOLVES = pytest.mark.parametrize("solve", [by_iteration, slow(by_krylov)])


@SOLVES
@pytest.mark.parametrize("size", [6, slow(2)])
def test_the_hessian_of_a_root_of_a_function_that_has_a_custom_vjp(size, solve):
    a = 0.3 * normal(size)
    sum_of = lambda f: lambda a: jnp.sum(root(a, f, solve) ** 2)
    expected = jax.jacfwd(jax.jacfwd(sum_of(plain)))(a)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jit(jax.jacfwd(jax.jacfwd(sum_of(only_backward))))(a)
    for plan in ("auto", fomoh_jax.plans.forward()):
        hessian = fomoh_jax.hessian(sum_of(only_backward), plan=plan)
        assert_close(jax.jit(hessian)(a), expected, rtol=1e-9)
    value = fomoh_jax.laplacian(sum_of(only_backward))(a)
    assert_close(value, jnp.trace(expected), rtol=1e-9)


@SOLVES
def test_the_root_may_be_in_a_scan_and_be_mapped(solve):
    a = 0.3 * normal(4, 3)

    def chain(f):
        step = lambda c, a: (root(a + 0.1 * c, f, solve), jnp.sum(a))
        return lambda a: jnp.sum(lax.scan(step, jnp.ones(3), a)[0] ** 2)

    directions = normal(2, 4, 3)
    ours = fomoh_jax.quadratic_model(chain(only_backward), (a,), (directions,))
    theirs = fomoh_jax.quadratic_model(chain(plain), (a,), (directions,))
    assert_close(ours, theirs, rtol=1e-9)
    mapped = lambda f: jax.vmap(fomoh_jax.laplacian(lambda a: root(a, f, solve)))(a)
    assert_close(mapped(only_backward), mapped(plain), rtol=1e-9)


def test_a_custom_jvp_whose_rule_differentiates_a_custom_vjp():
    @jax.custom_jvp
    def twice(x):
        return jnp.sum(only_backward(x)) * 2

    @twice.defjvp
    def rule(primals, tangents):
        _, tangent = jax.jvp(only_backward, primals, tangents)
        return twice(*primals), jnp.sum(tangent) * 2

    x = normal(3)
    expected = jax.hessian(lambda x: 2 * jnp.sum(plain(x)))(x)
    assert_close(jax.jit(fomoh_jax.hessian(twice))(x), expected)
