"""Channels: stacks, symbolic zeros, and the operations on them."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from fomoh_jax.hyperdual.number import (
    ZERO,
    HyperDual,
    Stack,
    add,
    apply_linear,
    materialise,
    scale,
    spread,
)
from tests.reference import normal


def test_numbers_are_trees_that_keep_their_axes_and_zeros():
    number = HyperDual(normal(3), Stack(normal(3, 2), axis=1), ZERO)
    back = jax.tree.map(lambda x: 2 * x, number)
    assert back.tangents.axis == 1 and back.seconds is ZERO
    assert len(jax.tree.leaves(number)) == 2
    assert copy.deepcopy(ZERO) == ZERO


def test_add_skips_zeros_and_aligns_axes():
    a, b = normal(4, 3), normal(3, 4)
    assert add(ZERO, ZERO) is ZERO
    total = add(Stack(a), ZERO, Stack(b, axis=1))
    np.testing.assert_array_equal(total.moved(0).array, a + b.T)


def test_scale_broadcasts_beside_the_stacking_axis():
    # As many directions as features: a wrong axis would not raise.
    c, a = normal(3), normal(3, 3)
    np.testing.assert_array_equal(scale(c, Stack(a)).array, c * a)
    np.testing.assert_array_equal(scale(c, Stack(a, axis=1)).array, c[:, None] * a)
    assert scale(c, ZERO) is ZERO


def test_spread_puts_scalars_and_unit_dimensions_behind_the_stacking_axis():
    scalar = HyperDual(jnp.array(2.0), Stack(jnp.array([1.0, 2.0])))
    row = HyperDual(normal(1, 2), Stack(normal(2, 1, 2)))
    for number in spread([scalar, row], (2, 2)):
        assert number.primal.shape == (2, 2)
        assert number.tangents.array.shape == (2, 2, 2)
    spread_scalar = spread([scalar], (2, 2))[0].tangents.array
    np.testing.assert_array_equal(spread_scalar[1], np.full((2, 2), 2.0))


def test_materialise_has_the_dtype_and_shape_of_the_primal():
    stack = materialise(ZERO, jnp.ones((2, 3), "bfloat16"), 4, axis=1)
    assert stack.array.shape == (2, 4, 3) and stack.array.dtype == "bfloat16"


def test_apply_linear_gives_zeros_to_the_operands_that_do_not_vary():
    x = Stack(normal(4, 2))
    function = lambda a, b: [jnp.concatenate([a, b]), a - b]
    joined, difference = apply_linear(function, [x, ZERO], [None, jnp.zeros(2)], [1, 0])
    assert joined.array.shape == (4, 4) and joined.axis == 1
    np.testing.assert_array_equal(joined.moved(0).array[:, :2], x.array)
    np.testing.assert_array_equal(difference.array, x.array)
    assert apply_linear(function, [ZERO, ZERO], [None, None], [0, 0]) == [ZERO, ZERO]
