"""Sources of directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax import directions
from tests.reference import normal

PARAMS = {"w": jnp.zeros((2, 3), "bfloat16"), "b": jnp.zeros(3, "float32")}
KEY = jax.random.key(0)


@pytest.mark.parametrize("source", [directions.gaussian, directions.rademacher])
def test_random_directions_have_unit_covariance_and_the_leaf_s_dtype(source):
    tree = source(4).sample(KEY, PARAMS, None)
    assert jax.tree.map(lambda v: (v.shape, v.dtype), tree) == {
        "w": ((4, 2, 3), jnp.bfloat16),
        "b": ((4, 3), jnp.float32),
    }
    many = source(20_000).sample(KEY, jnp.zeros(3), None)
    np.testing.assert_allclose(many.T @ many / 20_000, np.eye(3), atol=0.03)


def test_leaves_of_one_shape_get_different_directions():
    tree = directions.gaussian(2).sample(KEY, [jnp.zeros(3), jnp.zeros(3)], None)
    assert not np.any(tree[0] == tree[1])


def test_the_same_key_gives_the_same_directions():
    draw = lambda key: directions.gaussian(2).sample(key, PARAMS, None)["b"]
    np.testing.assert_array_equal(draw(KEY), draw(KEY))
    assert not np.any(draw(KEY) == draw(jax.random.key(1)))


def test_incoming_is_the_updates_in_the_parameters_dtype():
    updates = jax.tree.map(lambda p: normal(*p.shape), PARAMS)
    tree = directions.incoming().sample(KEY, PARAMS, updates)
    assert tree["w"].shape == (1, 2, 3) and tree["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(tree["b"][0], updates["b"].astype("float32"))


def test_sums_put_the_left_operand_first_and_draw_independently():
    updates = jax.tree.map(jnp.ones_like, PARAMS)
    gaussian = directions.gaussian(2)
    both = gaussian + gaussian + directions.incoming()
    tree = both.sample(KEY, PARAMS, updates)
    assert both.k == 5 and tree["w"].shape == (5, 2, 3)
    assert not np.any(tree["b"][:2] == tree["b"][2:4])
    np.testing.assert_array_equal(tree["b"][4], np.ones(3))
    with pytest.raises(TypeError):
        gaussian + 1


@pytest.mark.parametrize("source", [directions.gaussian, directions.rademacher])
def test_k_must_be_a_positive_python_integer(source):
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        source(0)
    with pytest.raises(TypeError, match=r"k must be a Python integer; got 1\.5"):
        source(1.5)
    with pytest.raises(TypeError, match='static_args="k"'):
        source(jnp.array(2))


def test_incoming_needs_updates_like_the_parameters():
    sample = directions.incoming().sample
    with pytest.raises(ValueError, match="called with None"):
        sample(KEY, PARAMS, None)
    with pytest.raises(ValueError, match="structure of params"):
        sample(KEY, PARAMS, {"w": PARAMS["w"]})
