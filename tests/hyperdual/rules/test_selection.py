"""Pooling: the slope is that of the element that JAX takes, also among equal ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fomoh_jax
from tests.reference import assert_agrees_with_nested_jvp, jitted, normal, slow


def pooled(x, reduction, window, strides, padding="VALID", dilation=(1, 1)):
    start = -jnp.inf if reduction is lax.max else jnp.inf
    around = lambda sizes: (1, *sizes, 1)
    return lax.reduce_window(
        x,
        start,
        reduction,
        around(window),
        around(strides),
        padding,
        window_dilation=around(dilation),
    )


@pytest.mark.optimised
@pytest.mark.parametrize("reduction", [lax.max, slow(lax.min)], ids=["max", "min"])
def test_equal_elements_have_the_slope_that_jax_gives_them(reduction):
    # Of three values, so that most windows have their extremum more than once.
    x, v = jnp.round(normal(2, 7, 6, 2)).clip(-1, 1), normal(2, 7, 6, 2, seed=1)
    sizes = [(2, 2), (3, 2), (1, 4), (6, 6)]
    for window, strides in [*zip(sizes, sizes), ((2, 2), (1, 1)), ((3, 2), (2, 3))]:
        for padding in ("VALID", "SAME"):
            pool = lambda x: pooled(x, reduction, window, strides, padding)
            _, slope, *_ = jitted(fomoh_jax.hyper_jvp)(pool, (x,), (v,), (v,))
            _, expected = jitted(jax.jvp)(pool, (x,), (v,))
            np.testing.assert_array_equal(slope, expected)


def test_pooling_agrees_with_nested_jvp():
    def program(x):
        y = pooled(jnp.tanh(x) * x, lax.max, (2, 2), (2, 2))
        return pooled(y**2, lax.min, (2, 1), (1, 1), dilation=(2, 1))

    assert_agrees_with_nested_jvp(program, normal(2, 9, 8, 3))
