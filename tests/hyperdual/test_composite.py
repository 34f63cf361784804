"""Channels that are put together where something needs them whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fomoh_jax
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.composite import Joined, Repeated, joined
from fomoh_jax._hyperdual.descriptions import Linear
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    normal,
    partly_slow,
)

N, WIDTH = 4, 3
WIDE = normal(3 * WIDTH + 1, 5)


def means(x):
    """Of each row: itself, the means over two halves, and a constant."""
    halves = [jnp.broadcast_to(jnp.mean(h, 0), x.shape) for h in jnp.split(x, 2)]
    return jnp.concatenate([x, *halves, jnp.ones((len(x), 1))], axis=1)


PROGRAMS = {
    "a layer": lambda x: jnp.tanh(means(x) @ WIDE),
    "weights that vary too": lambda x: means(x) @ (WIDE * jnp.sum(x)),
    "from the left": lambda x: WIDE.T @ means(x).T,
    "by einsum": lambda x: jnp.einsum("ni,io->on", means(x), WIDE),
    "with itself": lambda x: means(x) @ means(jnp.sin(x)).T,
    "elementwise": lambda x: jnp.tanh(means(x)) * means(x),
    "a slice of it": lambda x: means(x)[1:, 2:7] ** 2,
    "joined once more": lambda x: jnp.concatenate([means(x), x], 1) @ normal(13, 2),
    "joined along the rows": lambda x: (
        jnp.concatenate([x, jnp.broadcast_to(jnp.mean(x, 0), (2, WIDTH))])
        @ normal(WIDTH, 2)
    ),
    "repeated along what is summed": lambda x: (
        jnp.concatenate([x, jnp.broadcast_to(jnp.sum(x, 1, keepdims=True), x.shape)], 1)
        @ normal(2 * WIDTH, 2)
    ),
    "jitted": lambda x: jax.jit(lambda y: jnp.sin(y @ WIDE))(means(x)),
    "a loop": lambda x: lax.fori_loop(
        0, 2, lambda i, y: jnp.tanh(means(y) @ WIDE)[:, :WIDTH], x
    ),
    "a branch": lambda x: lax.cond(x[0, 0] > 9, jnp.sin, jnp.cos, means(x)) @ WIDE,
    "a scan over rows": lambda x: lax.scan(
        lambda c, row: (c + jnp.sin(row), c * row), jnp.zeros(10), means(x)
    )[1],
    "batches": lambda x: jax.vmap(lambda a: jnp.sin(means(a * x) @ WIDE))(x[:, 0]),
    "a convolution": lambda x: jnp.convolve(means(x)[0], jnp.sum(x, 1)),
    "sorted": lambda x: jnp.sort(means(x), axis=0) @ WIDE,
}


@pytest.mark.parametrize("name", partly_slow(PROGRAMS))
def test_agrees_with_nested_jvp(name):
    assert_agrees_with_nested_jvp(PROGRAMS[name], normal(N, WIDTH), k=2)


def test_traces_and_reverse_passes_agree():
    fun, x = lambda x: jnp.sum(PROGRAMS["a layer"](x) ** 2), normal(N, WIDTH)
    hessian = jax.jit(jax.hessian(fun))(x)
    assert_close(jax.jit(fomoh_jax.hessian(fun))(x), hessian)
    matrix = hessian.reshape(N * WIDTH, -1)
    assert_close(jax.jit(fomoh_jax.laplacian(fun))(x), jnp.trace(matrix))
    third = jax.jit(jax.grad(fomoh_jax.laplacian(fun)))(x)
    trace = lambda x: jnp.trace(jax.hessian(fun)(x).reshape(N * WIDTH, -1))
    assert_close(third, jax.jit(jax.grad(trace))(x))


def test_neighbours_of_one_kind_become_one_part():
    full, once = Stack(normal(2, 4, 3)), Repeated(Stack(normal(2, 1, 3)), (4, 3))
    parts = joined([full, full, once, once, full], [(4, 3)] * 5, 1)
    assert isinstance(parts, Joined)
    assert [type(part) for part in parts.parts] == [Stack, Repeated, Stack]
    assert parts.shapes == ((4, 6), (4, 6), (4, 3))
    assert joined([full, full], [(4, 3)] * 2, 1) is None
    # A product with a matrix multiplies what is repeated once.
    seen = []

    def product(matrix):
        def function(x):
            seen.append(x.shape)
            return x @ matrix

        of_slice = lambda start, size: product(matrix[start : start + size])
        return Linear(function, None, 1, of_slice, (4, 2))

    matrix = normal(15, 2, seed=1)
    result = parts.mapped(product(matrix), 0)
    assert sorted(seen) == [(1, 6), (4, 3), (4, 6)]
    assert_close(result.whole(2).array, parts.whole(2).array @ matrix)


@pytest.mark.slow
@pytest.mark.optimised
def test_means_are_multiplied_once_and_not_for_every_row():
    n, width = 16, 32
    weights = normal(3 * width, width).astype("float32")

    def layer(x, weights):
        parts = [jnp.broadcast_to(jnp.mean(h, 0), x.shape) for h in jnp.split(x, 2)]
        return jnp.sum(jnp.tanh(jnp.concatenate([x, *parts], axis=1) @ weights))

    laplacian = fomoh_jax.laplacian(layer)
    x = jnp.ones((n, width), "float32")
    compiled = jax.jit(laplacian).lower(x, weights).compile()
    one = 2 * n * width * width  # a row's own features, along one direction
    assert compiled.cost_analysis()["flops"] < 1.5 * n * width * one
    assert np.isfinite(jax.jit(laplacian)(x, weights))
