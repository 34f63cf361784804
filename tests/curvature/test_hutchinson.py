"""Hutchinson's estimates against the exact trace and diagonal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax import hessian, hessian_diagonal
from fomoh_jax.curvature import (
    Estimate,
    hutchinson_diagonal,
    hutchinson_trace,
    sampled_diagonal,
    sampled_hessian,
)
from tests.curvature.problems import (
    DIAGONAL,
    HESSIAN,
    PRIMALS,
    assert_unbiased,
    assert_variance,
    repeat,
    wave,
)
from tests.reference import assert_close, normal

KEY = jax.random.key(0)
OFF = HESSIAN**2 - jnp.diag(DIAGONAL**2)


def test_the_trace_is_unbiased_and_has_the_variance_of_the_formula():
    # Four times the probes halve the standard error.
    for probes in (8, 32):
        estimate = hutchinson_trace(wave, probes=probes)
        values, errors = repeat(lambda key: estimate(key, *PRIMALS))
        assert_unbiased(values, jnp.trace(HESSIAN))
        assert_variance(values, errors, 2 * jnp.sum(OFF) / probes, rtol=0.1)


def test_the_diagonal_is_unbiased_and_has_the_variance_of_the_formula():
    values, errors = repeat(
        lambda key: hutchinson_diagonal(wave, probes=8)(key, *PRIMALS)
    )
    assert_unbiased(values, DIAGONAL)
    assert_variance(values, errors, jnp.sum(OFF, axis=1) / 8, rtol=0.1)


@pytest.mark.slow
def test_both_are_exact_where_the_hessian_is_diagonal():
    fun, x = lambda x: jnp.sum(x**3), jnp.arange(1.0, 5.0)
    value, error = jax.jit(hutchinson_trace(fun, probes=2))(KEY, x)
    assert_close((value, error), (jnp.sum(6 * x), jnp.zeros(())))
    estimate = jax.jit(hutchinson_diagonal(fun, probes=2))(KEY, x)
    assert_close(estimate, Estimate(6 * x, jnp.zeros(4)))


@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchinson_diagonal])
def test_chunks_have_the_same_probes(estimate):
    sizes = None, 2
    whole, chunked = jax.jit(
        lambda key, *args: [
            estimate(wave, probes=5, chunk_size=c)(key, *args) for c in sizes
        ]
    )(KEY, *PRIMALS)
    assert_close(chunked, whole)


@pytest.mark.parametrize("argnums", [0, 2, (0, 2), (2,), -1])
def test_the_results_are_shaped_like_those_of_the_exact_operators(argnums):
    fun = lambda params, powers, scale: wave(params, powers) * scale
    args = *PRIMALS, 2.0
    shape = lambda found: jax.tree.map(lambda x: (x.shape, x.dtype), found)
    exact = shape(jax.eval_shape(hessian_diagonal(fun, argnums), *args))
    for estimate in (hutchinson_diagonal, sampled_diagonal):
        for part in jax.eval_shape(estimate(fun, argnums, probes=2), KEY, *args):
            assert shape(part) == exact
    exact = shape(jax.eval_shape(hessian(fun, argnums), *args))
    for part in jax.eval_shape(sampled_hessian(fun, argnums, probes=2), KEY, *args):
        assert shape(part) == exact
    for part in jax.eval_shape(hutchinson_trace(fun, argnums, probes=2), KEY, *args):
        assert part.shape == ()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "estimate",
    [hutchinson_trace, hutchinson_diagonal, sampled_hessian, sampled_diagonal],
)
def test_they_are_mapped_over_keys_and_arguments(estimate):
    fun = lambda x, *, power: jnp.sum(jnp.sin(x) ** power)
    keys, xs = jax.random.split(KEY, 3), normal(3, 4)
    one = functools.partial(estimate(fun, probes=5, chunk_size=2), power=2)
    found = jax.jit(jax.vmap(one))(keys, xs)
    assert_close(jax.tree.map(lambda x: x[1], found), jax.jit(one)(keys[1], xs[1]))


@pytest.mark.slow
def test_an_argument_may_hold_none():
    b = jnp.array([1.0, 2.0])
    fun = lambda x: jnp.sum(x["b"] ** 3)
    value, _ = hutchinson_diagonal(fun, probes=2)(KEY, {"a": None, "b": b})
    assert_close(value, {"a": None, "b": 6 * b})


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchinson_diagonal])
def test_a_number_has_no_curvature(estimate):
    found = estimate(lambda x: 2.0, probes=2)(KEY, jnp.ones(3))
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(found))


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchinson_diagonal])
def test_the_error_is_that_of_curvature_of_any_size(estimate):
    x, sizes = jnp.ones(3, jnp.float32), jnp.array([2.0**-80, 1, 2.0**83], jnp.float32)
    fun = lambda x, size: size * (x[0] * x[1] + 3 * x[1] * x[2])
    of_size = lambda size: estimate(fun, probes=4)(KEY, x, size)
    tiny, one, huge = map(jax.jit(of_size), sizes)
    assert jnp.all(jax.tree.leaves(one.standard_error)[0] > 0)
    for found, size in ((tiny, sizes[0]), (huge, sizes[2])):
        assert_close(found, jax.tree.map(lambda x, size=size: size * x, one))


def test_the_trace_takes_what_reverse_mode_cannot():
    def grown(x):  # squared until one is beyond 8
        unfinished = lambda y: jnp.max(jnp.abs(y)) < 8
        return jnp.sum(jax.lax.while_loop(unfinished, lambda y: y * y, x))

    x = jnp.array([2.0, 1.5])  # twice: x⁴
    value, _ = jax.jit(hutchinson_trace(grown, probes=2))(KEY, x)
    np.testing.assert_allclose(value, jnp.sum(12 * x**2))


def test_a_function_may_take_a_key_of_its_own():
    fun = lambda x, *, key: jnp.sum(x**3) + 0 * jax.random.uniform(key)
    key = jax.random.key(0)
    trace = hutchinson_trace(fun, probes=2)(key, jnp.ones(2), key=key)
    np.testing.assert_allclose(trace.value, 12)
    with pytest.raises(ValueError, match=r"argument twice; got \(0, 0\)"):
        hutchinson_trace(fun, (0, 0), probes=2)(key, jnp.ones(2), key=key)
