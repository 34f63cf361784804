"""Hutchinson's estimates against the exact trace and diagonal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax.curvature import Estimate, hutchinson_diagonal, hutchinson_trace
from tests.curvature.problems import (
    DIAGONAL,
    HESSIAN,
    PRIMALS,
    assert_unbiased,
    assert_variance,
    repeat,
    wave,
)
from tests.reference import assert_close

KEY = jax.random.key(0)
OFF = HESSIAN**2 - jnp.diag(DIAGONAL**2)


def test_the_trace_is_unbiased_and_has_the_variance_of_the_formula():
    # Four times the probes halve the standard error.
    for probes in (8, 32):
        estimate = lambda key: hutchinson_trace(wave, PRIMALS, key, probes)
        values, errors = repeat(estimate)
        assert_unbiased(values, jnp.trace(HESSIAN))
        assert_variance(values, errors, 2 * jnp.sum(OFF) / probes, rtol=0.1)


def test_the_diagonal_is_unbiased_and_has_the_variance_of_the_formula():
    values, errors = repeat(lambda key: hutchinson_diagonal(wave, PRIMALS, key, 8))
    assert_unbiased(values, DIAGONAL)
    assert_variance(values, errors, jnp.sum(OFF, axis=1) / 8, rtol=0.1)


def test_both_are_exact_where_the_hessian_is_diagonal():
    fun, x = lambda x: jnp.sum(x**3), jnp.arange(1.0, 5.0)
    value, error = jax.jit(lambda x: hutchinson_trace(fun, (x,), KEY, 2))(x)
    assert_close((value, error), (jnp.sum(6 * x), jnp.zeros(())))
    estimate = jax.jit(lambda x: hutchinson_diagonal(fun, (x,), KEY, 2))(x)
    assert_close(estimate, Estimate((6 * x,), (jnp.zeros(4),)))


@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchinson_diagonal])
def test_chunks_have_the_same_probes(estimate):
    sizes = None, 2
    whole, chunked = jax.jit(
        lambda key: [estimate(wave, PRIMALS, key, 5, chunk_size=c) for c in sizes]
    )(KEY)
    assert_close(chunked, whole)


def test_the_diagonal_is_a_tree_like_the_arguments():
    (params, powers), _ = jax.eval_shape(
        lambda key: hutchinson_diagonal(wave, PRIMALS, key, 2), KEY
    )
    assert powers is None
    assert jax.tree.map(jnp.shape, params) == {"b": (2,), "w": (2, 2)}


def test_an_argument_may_hold_none():
    b = jnp.array([1.0, 2.0])
    for primals in (({"a": None, "b": b},), (None, b)):
        fun = lambda *args: jnp.sum(jax.tree.leaves(args)[0] ** 3)
        value, _ = hutchinson_diagonal(fun, primals, KEY, 2)
        assert_close(value, jax.tree.map(lambda x: 6 * x, primals))


@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchinson_diagonal])
def test_a_number_has_no_curvature(estimate):
    found = estimate(lambda x: 2.0, (jnp.ones(3),), KEY, 2)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(found))


@pytest.mark.optimised
@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchinson_diagonal])
def test_the_error_is_that_of_curvature_of_any_size(estimate):
    x, sizes = jnp.ones(3, jnp.float32), jnp.array([2.0**-80, 1, 2.0**83], jnp.float32)
    fun = lambda x, size: size * (x[0] * x[1] + 3 * x[1] * x[2])
    of_size = lambda size: estimate(lambda x: fun(x, size), (x,), KEY, 4)
    tiny, one, huge = map(jax.jit(of_size), sizes)
    assert jnp.all(jax.tree.leaves(one.standard_error)[0] > 0)
    for found, size in ((tiny, sizes[0]), (huge, sizes[2])):
        assert_close(found, jax.tree.map(lambda x, size=size: size * x, one))


def test_the_trace_takes_what_reverse_mode_cannot():
    def grown(x):  # squared until one is beyond 8
        unfinished = lambda y: jnp.max(jnp.abs(y)) < 8
        return jnp.sum(jax.lax.while_loop(unfinished, lambda y: y * y, x))

    x = jnp.array([2.0, 1.5])  # twice: x⁴
    value, _ = jax.jit(lambda x: hutchinson_trace(grown, (x,), KEY, 2))(x)
    np.testing.assert_allclose(value, jnp.sum(12 * x**2))
