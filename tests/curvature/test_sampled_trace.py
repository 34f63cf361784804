"""Traces from random coordinates and probes, of any operator and in any dimension."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats

import fomoh_jax
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate
from fomoh_jax._hyperdual.one_hot import OneHot
from fomoh_jax._hyperdual.pair_forms import Diagonal, Pairs
from fomoh_jax._hyperdual.trace_forms import DiagonalTrace, Trace, WeightedTrace
from fomoh_jax.curvature import hutchinson_trace, sampled_trace
from fomoh_jax.curvature._sampled_trace import distinct
from tests.reference import assert_close, normal, partly_slow

D, N = 6, 3
W = normal(D, 5)
FACTOR = normal(D, 4, seed=1)
SIGNED = normal(D, seed=2)
OPERATORS = {
    "no weights": ({}, np.eye(D)),
    "weights": ({"weights": SIGNED}, np.diag(SIGNED)),
    "factor": ({"factor": FACTOR}, FACTOR @ FACTOR.T),
}
ESTIMATES = {
    "coordinates": functools.partial(sampled_trace, coordinates=N),
    "probes": functools.partial(hutchinson_trace, probes=N),
}


def field(x):
    """Two numbers; the first layer takes all elements, others take neighbours."""
    network = jnp.tanh(x @ W) @ normal(5, 2, seed=3)
    return (1 - jnp.sum(x**2)) * network + jnp.sum(x[1:] * x[:-1])


# --- right --------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_are_unbiased_and_know_their_error(name, operator):
    options, matrix = OPERATORS[operator]
    x, draws = normal(D) / 3, 4000
    keys = jax.random.split(jax.random.key(1), draws)
    estimate = ESTIMATES[name](field, **options)
    value, error = jax.jit(jax.vmap(estimate, (0, None)))(keys, x)
    hessian = jax.jit(jax.hessian(field))(x)
    exact = jnp.einsum("ij,oij->o", matrix, hessian)
    spread = jnp.std(value, 0)
    assert value.shape == (draws, 2)
    assert np.all(np.abs(jnp.mean(value, 0) - exact) < 4 * spread / draws**0.5)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(error**2, 0)), spread, rtol=0.1)


@pytest.mark.parametrize("operator", OPERATORS)
def test_all_the_coordinates_are_the_whole_trace(operator):
    options, _ = OPERATORS[operator]
    n = 4 if operator == "factor" else D
    x = {"a": normal(2), "b": normal(2, 2)}
    fun = lambda x, shift: field(ravel_pytree(x)[0] + shift)
    estimate = sampled_trace(fun, coordinates=n, **options)
    value, error = jax.jit(estimate)(jax.random.key(0), x, 0.1)
    assert_close(value, jax.jit(fomoh_jax.laplacian(fun, **options))(x, 0.1))
    assert not np.any(error)


def test_weights_that_are_traced_may_be_of_either_sign():
    x, key = normal(D) / 3, jax.random.key(0)
    by = lambda w, size=None: hutchinson_trace(
        field, probes=4, weights=w, chunk_size=size
    )(key, x)
    known = jax.jit(lambda: [by(jnp.abs(SIGNED)), by(SIGNED)])()
    traced = jax.jit(lambda w: [by(jnp.abs(w)), by(w, 3)])(SIGNED)
    assert_close(traced, known)


@pytest.mark.parametrize("total", [7, 100])
def test_each_subset_is_as_likely(total):
    keys = jax.random.split(jax.random.key(3), 6000)
    drawn = np.sort(jax.jit(jax.vmap(lambda key: distinct(key, 3, total)))(keys))
    assert drawn.min() == 0 and drawn.max() == total - 1
    assert np.all(np.diff(drawn) > 0)
    counts = np.bincount(drawn.ravel(), minlength=total)
    assert stats.chisquare(counts).pvalue > 1e-3
    if total == 7:
        _, subsets = np.unique(drawn, axis=0, return_counts=True)
        assert len(subsets) == 35 and stats.chisquare(subsets).pvalue > 1e-3


# --- known to be zero ---------------------------------------------------------------

ROW = normal(1, D)
PROGRAMS = {
    "scaled, negated and shifted": lambda x: jnp.sum(jnp.sin(-x / SIGNED + 1) * x),
    "a product": lambda x: W.T @ jnp.exp(x),
    "a product from the left": lambda x: jnp.tanh(x) @ W,
    "reshaped": lambda x: jnp.sum(x.reshape(2, 3) ** 3) + jnp.sum(x[None] * ROW),
    "squeezed and converted": lambda x: jnp.squeeze(x[None, :, None] ** 2).sum(),
    "slices": lambda x: jnp.sum(x[2:4] ** 2 * x[:2]) + x[-1] ** 3,
    "joined": lambda x: jnp.tanh(jnp.concatenate([jnp.ones(2), x**2, x])) @ normal(14),
    "reversed": lambda x: jnp.sum(x[::-1] * x**2) + jnp.sum(x[::2] ** 2),
    "a sum over an axis": lambda x: jnp.sum(x.reshape(2, 3) ** 2, 0) ** 2,
    "a batched product": lambda x: jnp.einsum("bi,bi->b", x.reshape(2, 3), W.T[:2, :3]),
    "nothing": lambda x: jnp.sum(x[2:2] ** 2) + jnp.prod(jnp.cos(x)),
    "selected": lambda x: jnp.where(x > 0, x**2, x**3) @ W,
    "jitted": lambda x: jax.jit(lambda x: (x**2 / 2) @ W)(x),
    "a loop": lambda x: jax.lax.fori_loop(0, 2, lambda i, x: jnp.sin(x * x), x) @ W,
}
INDEX = jnp.array([4, 0, 3])


@pytest.mark.parametrize("name", partly_slow(PROGRAMS))
def test_one_hot_directions_are_what_they_stand_for(name):
    x, entries = normal(D) / 2 + 1, normal(3, seed=5)
    hot = OneHot(entries, INDEX, (D,))
    dense = Stack(entries[:, None] * jax.nn.one_hot(INDEX, D))
    matrix = normal(3, 3)
    forms = (Trace(3), DiagonalTrace(entries), WeightedTrace(matrix + matrix.T))

    def coefficients(channel):
        def under(form):
            (out, _) = evaluate(PROGRAMS[name], form, (x,), [channel])
            return [
                coefficients_of(out, "tangents", 3),
                coefficients_of(out, "seconds", form.q),
            ]

        return list(map(under, (*forms, Diagonal(3), Pairs(3))))

    assert_close(*(jax.jit(lambda c=c: coefficients(c))() for c in (hot, dense)))


@pytest.mark.optimised
def test_time_and_memory_follow_the_coordinates_and_not_the_dimensions():
    d, points = 20_000, 8
    layers = jnp.ones((d, 32), "float32"), jnp.ones(32, "float32")

    def residuals(layers, x, key):
        u = lambda x: jnp.sum(x * jnp.sin(x)) * (jnp.tanh(x @ layers[0]) @ layers[1])
        at = lambda x: sampled_trace(u, coordinates=16)(key, x).value
        return jax.vmap(at)(x)

    x = jnp.ones((points, d), "float32")
    lowered = jax.jit(residuals).lower(layers, x, jax.random.key(0))
    compiled = lowered.compile()
    one = 2 * points * d * 32  # the first layer at every point
    assert compiled.cost_analysis()["flops"] < 1.5 * one
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * x.nbytes


# --- refused ------------------------------------------------------------------------


def test_what_cannot_be_drawn_is_refused():
    key, x = jax.random.key(0), normal(3)
    with pytest.raises(ValueError, match=r"coordinates must be at most 3.*got 4"):
        sampled_trace(jnp.sum, coordinates=4)(key, x)
    with pytest.raises(ValueError, match=r"coordinates must be at most 2.*got 3"):
        sampled_trace(jnp.sum, coordinates=3, factor=np.ones((3, 2)))(key, x)
    with pytest.raises(ValueError, match="coordinates must be at least 2"):
        sampled_trace(jnp.sum, coordinates=1)
    with pytest.raises(ValueError, match=r"weights must have shape \[3\].*\[3, 3\]"):
        sampled_trace(jnp.sum, coordinates=2, weights=np.eye(3))(key, x)
    for make in (sampled_trace, hutchinson_trace):
        n = {"coordinates" if make is sampled_trace else "probes": 2}
        with pytest.raises(ValueError, match=r"weights or their factor.*not both"):
            make(jnp.sum, weights=np.ones(3), factor=np.eye(3), **n)
        with pytest.raises(TypeError, match=f"{make.__name__} needs .* int"):
            make(jnp.argmax, **n)(key, x)
