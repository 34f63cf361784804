"""``hessian`` against JAX's own; the diagonal and the Laplacian are in test_traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fomoh_jax
from tests.programs import PROGRAMS, cnn, cnn_arguments, mlp, rosenbrock
from tests.reference import assert_close, assert_symmetric, normal


@pytest.mark.parametrize("name", PROGRAMS)
def test_hessian_agrees_with_forward_over_forward(name):
    fun, primals = PROGRAMS[name]
    actual = jax.jit(fomoh_jax.hessian(fun))(*primals)
    assert_close(actual, jax.jit(jax.jacfwd(jax.jacfwd(fun)))(*primals))


def test_hessian_agrees_with_jax_hessian_on_the_cnn():
    params, images, labels = cnn_arguments()
    loss = lambda params: cnn(params, images, labels)
    hessian = jax.jit(fomoh_jax.hessian(loss))(params)
    assert_close(hessian, jax.jit(jax.hessian(loss))(params))


def test_hessian_has_the_structure_of_jax_hessian():
    fun, primals = mlp(jnp.tanh)
    for argnums in (0, 1, (0, 1), (1,), -1):
        assert_close(
            jax.jit(fomoh_jax.hessian(fun, argnums))(*primals),
            jax.jit(jax.hessian(fun, argnums))(*primals),
        )


@pytest.mark.optimised
def test_hessian_in_chunks_is_the_hessian():
    x = normal(5)
    expected = jax.jit(jax.hessian(rosenbrock))(x)
    for chunk_size in (1, 2, 5, 9):
        hessian = fomoh_jax.hessian(rosenbrock, chunk_size=chunk_size)(x)
        assert_close(hessian, expected)
        assert_symmetric(hessian)


def test_hessian_passes_keywords_on():
    def fun(x, *, power):
        return jnp.sum(x**power)

    expected = np.diag(6 * np.array([1.0, 2.0]))
    actual = fomoh_jax.hessian(fun)(jnp.array([1.0, 2.0]), power=3)
    assert_close(actual, jnp.asarray(expected))
