"""Ours inside JAX's transformations, JAX's inside ours, and ours inside ours."""

import jax
import jax.numpy as jnp
import pytest

import fomoh_jax
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    normal,
    partly_slow,
    slow,
)

X = normal(3)


def fun(x):
    return jnp.sum(jnp.sin(x) * x**2) * x[0]


def laplacian(hessian):
    return lambda f: lambda x: jnp.trace(hessian(f)(x))


OUTER = {
    "jit": jax.jit,
    "grad": lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2)),
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "checkpoint": lambda f: jax.jacrev(jax.checkpoint(f)),
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](x),
    "vjp": lambda f: lambda x: jax.vjp(f, x)[1](f(x)),
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])),
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c)[0], c), x, length=2),
    "ours": fomoh_jax.hessian,
}

INNER = {
    "grad": jax.grad,
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "remat": lambda f: jax.grad(jax.remat(f)),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
    "vjp": lambda f: lambda x: jax.vjp(f, x)[1](x[0])[0],
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](x),
    "linear_transpose": lambda f: (
        lambda x: jax.linear_transpose(lambda y: x * y[::-1], x)(x**2)[0]
    ),
    "vmap": lambda f: lambda x: jax.vmap(f, in_axes=1)(jnp.outer(x, x)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(OUTER))
def test_ours_inside(name):
    wrap = OUTER[name]
    expected = jax.jit(wrap(jax.hessian(fun)))(X)
    assert_close(jax.jit(wrap(fomoh_jax.hessian(fun)))(X), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n == "jacrev" else slow(n) for n in OUTER])
def test_ours_inside_without_jit(name):
    wrap = OUTER[name]
    expected = jax.jit(wrap(jax.hessian(fun)))(X)
    assert_close(wrap(fomoh_jax.hessian(fun))(X), expected)


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", partly_slow(INNER))
def test_inside_ours(name):
    assert_agrees_with_nested_jvp(INNER[name](fun), X, k=2)


def test_a_laplacian_of_a_function_that_uses_a_laplacian():
    twice = lambda hessian: laplacian(hessian)(
        lambda x: laplacian(hessian)(fun)(x) * jnp.sum(x**3)
    )
    ours, theirs = twice(fomoh_jax.hessian), twice(jax.hessian)
    assert_close(jax.jit(ours)(X), jax.jit(theirs)(X))


def test_shapes_are_known_without_evaluation():
    seen = []

    def noisy(x):
        jax.debug.callback(seen.append, x[0])
        return fun(x)

    model = lambda x: fomoh_jax.quadratic_model(noisy, (x,), (jnp.eye(3),))
    shapes = jax.eval_shape(model, X)
    assert [leaf.shape for leaf in shapes] == [(), (3,), (3, 3)]
    assert seen == []


@pytest.mark.slow
def test_export_and_back():
    pytest.importorskip("flatbuffers", reason="jax needs flatbuffers to serialise")
    exported = jax.export.export(jax.jit(fomoh_jax.hessian(fun)))(X)
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(X), jax.hessian(fun)(X))


def test_an_exported_function_inside_is_refused_by_name_as_in_jax():
    exported = jax.export.export(jax.jit(fun))(X)
    with pytest.raises(NotImplementedError, match="call_exported"):
        fomoh_jax.hessian(exported.call)(X)
