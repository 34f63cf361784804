"""Channels: zeros, stacks, deferred ones, and the operations on them."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax import plans, quadratic_model
from fomoh_jax._hyperdual.channels import ZERO, Stack, Zero, alignment
from fomoh_jax._hyperdual.deferred import Deferred
from fomoh_jax._hyperdual.linear_operations import apply_linear
from fomoh_jax._hyperdual.local import unit_vectors
from fomoh_jax._hyperdual.number import HyperDual, spread
from fomoh_jax._hyperdual.pair_forms import Diagonal
from tests.reference import normal


def test_numbers_are_trees_that_keep_their_axes_and_zeros():
    number = HyperDual(normal(3), Stack(normal(3, 2), axis=1), ZERO)
    back = jax.tree.map(lambda x: 2 * x, number)
    assert back.tangents.axis == 1 and back.seconds.is_zero
    assert len(jax.tree.leaves(number)) == 2
    assert copy.deepcopy(ZERO) == ZERO


def test_a_zero_is_like_the_primal_of_its_number_wherever_that_is_cut():
    number = HyperDual(normal(4, 3).astype("bfloat16"))
    seen = []
    jax.lax.map(lambda n: seen.append(n.tangents.coefficient(0)), number)
    assert seen[0].shape == (3,) and seen[0].dtype == "bfloat16"
    stack = number.tangents.whole(2)
    assert stack.array.shape == (2, 4, 3) and stack.array.dtype == "bfloat16"


def test_a_sum_skips_zeros_and_aligns_axes():
    a, b = normal(4, 3), normal(3, 4)
    assert (ZERO + ZERO).is_zero
    total = Stack(a) + ZERO + Stack(b, axis=1)
    np.testing.assert_array_equal(total.moved(0).array, a + b.T)
    difference = ZERO + Stack(a) - Stack(b, axis=1)
    np.testing.assert_array_equal(difference.moved(0).array, a - b.T)


def test_a_sum_has_the_coefficients_that_either_has():
    a, b = normal(2, 3), normal(1, 3, seed=1)
    total = Stack(a, 0, (0, 3), 5) + Stack(b, 0, (1,), 5)
    assert total.present == (0, 1, 3) and total.size == 5
    np.testing.assert_array_equal(total.array, jnp.stack([a[0], b[0], a[1]]))
    np.testing.assert_array_equal(total.coefficient(3), a[1])
    np.testing.assert_array_equal(total.coefficient(2), jnp.zeros(3))
    whole = Stack(a, 0, (0, 3), 5) + Stack(normal(5, 3))
    assert whole.present is None and whole.k == 5


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_product_with_an_array_is_taken_beside_the_stacking_axis(kind):
    # As many directions as features: a wrong axis would not raise.
    c, a = kind(normal(3)), normal(3, 3)
    np.testing.assert_array_equal((c * Stack(a)).array, c * a)
    np.testing.assert_array_equal((c * Stack(a, axis=1)).array, c[:, None] * a)
    assert (c * ZERO).is_zero and (2 * ZERO).is_zero


def test_spread_puts_scalars_and_unit_dimensions_behind_the_stacking_axis():
    scalar = HyperDual(jnp.array(2.0), Stack(jnp.array([1.0, 2.0])))
    row = HyperDual(normal(1, 2), Stack(normal(2, 1, 2)))
    for number in spread([scalar, row], (2, 2)):
        assert number.primal.shape == (2, 2)
        assert number.tangents.array.shape == (2, 2, 2)
    spread_scalar = spread([scalar], (2, 2))[0].tangents.array
    np.testing.assert_array_equal(spread_scalar[1], np.full((2, 2), 2.0))


def test_apply_linear_gives_zeros_to_the_operands_that_do_not_vary():
    x, zero = Stack(normal(4, 2)), Zero(jnp.ones(2))
    function = lambda a, b: [jnp.concatenate([a, b]), a - b]
    joined, difference = apply_linear(function, [x, zero], [1, 0])
    assert joined.array.shape == (4, 4) and joined.axis == 1
    np.testing.assert_array_equal(joined.moved(0).array[:, :2], x.array)
    np.testing.assert_array_equal(difference.array, x.array)
    assert apply_linear(function, [ZERO, ZERO], [0, 0]) == [ZERO, ZERO]


def test_a_deferred_channel_is_made_once_for_all_that_one_equation_does():
    made = []

    def make(seed):
        made.append(seed)
        return seed * jnp.ones((2, 3))

    channel = Deferred(jnp.array(2.0), make, (2, 3), jnp.dtype("float64"))
    number = HyperDual(jnp.ones(3), channel).not_before(None)
    total = 3 * number.tangents + number.tangents
    np.testing.assert_array_equal(total.array, np.full((2, 3), 8.0))
    assert len(made) == 1
    # The next equation reads another, which waits for what this one has computed.
    later = number.not_before(total.array)
    np.testing.assert_array_equal(later.tangents.coefficient(1), np.full(3, 2.0))
    assert len(made) == 2


@pytest.mark.slow
def test_a_deferred_leaf_keeps_nothing_that_was_made_of_it():
    leaf = Deferred(
        jax.random.key(0),
        lambda key: jax.random.normal(key, (2, 3)),
        (2, 3),
        jnp.dtype("float64"),
    )
    cube, x = lambda x: jnp.sum(x**3), jnp.ones(3)
    for use in (
        lambda x: x[0] * leaf.dense().sum(),
        lambda x: quadratic_model(cube, (x,), (leaf,), plan=plans.adjoint()).slope,
    ):
        # A tracer that it kept would be met by the second call.
        np.testing.assert_allclose(jax.jit(use)(x), use(x))


def test_channels_take_the_arithmetic_of_arrays():
    a, c = normal(4, 3), normal(3, seed=1)
    for left, right in (
        (Stack(a) * c, a * c),
        (Stack(a) / c, a / c),
        (-Stack(a), -a),
        (sum([Stack(a), Stack(a)]), 2 * a),
    ):
        np.testing.assert_allclose(left.array, right)
    assert (ZERO / c).is_zero and (-ZERO).is_zero
    with pytest.raises(TypeError, match="unsupported operand"):
        Stack(a) * Stack(a)


def test_a_zero_without_a_type_is_named_where_it_would_be_needed():
    function = lambda a, b: [a + b]
    with pytest.raises(TypeError, match=r"a zero must have a type.*got ZERO"):
        apply_linear(function, [Stack(normal(4, 2)), ZERO], [0])


def test_products_that_are_zero_have_a_type():
    x, y = Stack(normal(1, 3), 0, (0,), 2), Stack(normal(1, 3), 0, (1,), 2)
    for zero in (Diagonal(2).product(x, y), Diagonal(2).product(x, Zero(normal(3)))):
        np.testing.assert_array_equal(zero.coefficient(0), jnp.zeros(3))


def test_channels_of_different_kinds_are_different_trees():
    stack = HyperDual(1.0, Stack(jnp.ones(2)))
    partly = HyperDual(1.0, Stack(jnp.ones(2), 0, (0, 1), 3))
    deferred = HyperDual(
        1.0, Deferred(jnp.ones(2), jnp.sin, (2,), jnp.dtype("float64"))
    )
    trees = list(map(jax.tree.structure, (stack, partly, deferred, HyperDual(1.0))))
    assert len(set(trees)) == len(trees)
    assert all(a != b for i, a in enumerate(trees) for b in trees[:i])


def test_alternatives_are_aligned_along_the_axis_of_the_first_that_varies():
    like, n = jnp.ones((3, 2)), 4
    some = Stack(normal(2, 3, 2), 0, (1, 3), n)
    alternatives = [Zero(like), Stack(normal(3, n, 2), axis=1), some]
    align = alignment(alternatives)
    first, second, third = (align(channel, n) for channel in alternatives)
    structures = set(map(jax.tree.structure, (first, second, third)))
    assert structures == {jax.tree.structure(second)} and second.axis == 1
    np.testing.assert_array_equal(first.array, np.zeros((3, n, 2)))
    np.testing.assert_array_equal(second.array, alternatives[1].array)
    np.testing.assert_array_equal(third.dense(), some.dense())
    assert alignment([ZERO, ZERO])(ZERO, n) is ZERO


def test_local_alternatives_are_aligned_by_slots_and_others_are_stored():
    like = jnp.ones(3)
    a, b = unit_vectors([like, 2 * like])
    alternatives = [a, Zero(like), b]
    aligned = [alignment(alternatives)(channel, 6) for channel in alternatives]
    assert len(set(map(jax.tree.structure, aligned))) == 1
    assert all(not channel.is_stored for channel in aligned)
    for channel, before in zip(aligned, alternatives):
        np.testing.assert_array_equal(channel.whole(6).array, before.whole(6).array)
    mixed = [a, Stack(normal(6, 3))]
    aligned = [alignment(mixed)(channel, 6) for channel in mixed]
    assert all(channel.is_stored for channel in aligned)
    np.testing.assert_array_equal(aligned[0].array, a.whole(6).array)
