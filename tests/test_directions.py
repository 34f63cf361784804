"""Sources of directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import Stack, directions, solvers
from fomoh_jax._hyperdual.channels import is_channel
from tests.reference import normal

PARAMS = {"w": jnp.zeros((2, 3), "bfloat16"), "b": jnp.zeros(3, "float32")}
KEY = jax.random.key(0)
LAYERS = {
    "first": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)},
    "second": {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1)},
    "third": {"kernel": jnp.zeros((1, 2))},
}


def present(tree):
    return jax.tree.map(lambda v: v.present, tree, is_leaf=is_channel)


def dense(tree):
    return jax.tree.map(lambda v: v.dense(), tree, is_leaf=is_channel)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_coordinates_are_the_identity_and_zero_on_all_leaves_but_one():
    source, params = directions.coordinates(), PARAMS | {"a": jnp.zeros(())}
    assert source.count(params) == 10 and not source.is_random
    tree = source.sample(None, params, None)
    assert present(tree) == {"a": (0,), "b": (1, 2, 3), "w": (4, 5, 6, 7, 8, 9)}
    kinds = jax.tree.map(lambda v: (v.shape, v.dtype), dense(tree))
    expected = jax.tree.map(lambda p: ((10, *p.shape), p.dtype), params)
    assert kinds == expected
    flat = [v.reshape(10, -1).astype("float32") for v in jax.tree.leaves(dense(tree))]
    np.testing.assert_array_equal(jnp.concatenate(flat, axis=1), np.eye(10))


def test_coordinates_of_nothing_are_refused():
    with pytest.raises(ValueError, match="needs parameters; all leaves are empty"):
        directions.coordinates().sample(None, {"a": jnp.zeros(0)}, None)


@pytest.mark.slow
def test_along_coordinates_a_step_is_newton_s_of_the_whole_space():
    params = {"w": jnp.asarray(normal(2, 2)), "b": jnp.asarray(normal(2, seed=1))}
    x = normal(5, 2, seed=2)

    def loss(params):
        return jnp.sum(jax.nn.softplus(x @ params["w"] + params["b"])) + jnp.sum(
            params["w"] ** 2
        )

    tx = fomoh_jax.scale_by_hyperplane(directions.coordinates())
    step = jax.jit(lambda p: tx.update(None, tx.init(p), p, value_fn=loss)[0])(params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    of_flat = lambda flat: loss(unravel(flat))
    slope, hessian = jax.grad(of_flat)(flat), jax.hessian(of_flat)(flat)
    expected = np.linalg.solve(hessian, slope)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(step)[0], expected)


@pytest.mark.slow
def test_layerwise_gives_each_layer_its_own_part_of_one_direction():
    source = directions.layerwise()
    tree = source.sample(KEY, LAYERS, None)
    assert source.count(LAYERS) == 3
    assert present(tree) == {
        "first": {"kernel": (0,), "bias": (0,)},
        "second": {"kernel": (1,), "bias": (1,)},
        "third": {"kernel": (2,)},
    }
    whole = directions.gaussian(1).sample(KEY, LAYERS, None)
    together = jax.tree.map(lambda v: jnp.sum(v, axis=0, keepdims=True), dense(tree))
    jax.tree.map(np.testing.assert_array_equal, together, whole)
    assert all(v.shape[0] == 3 for v in jax.tree.leaves(dense(tree)))


@pytest.mark.slow
def test_layerwise_by_leaf_gives_each_leaf_its_own():
    source = directions.layerwise(directions.rademacher(2), by="leaf")
    assert source.count(LAYERS) == 10
    leaves = jax.tree.leaves(source.sample(KEY, LAYERS, None), is_leaf=is_channel)
    assert [v.present for v in leaves] == [(2 * i, 2 * i + 1) for i in range(5)]
    assert all(v.k == 10 for v in leaves)


def test_a_layer_is_what_differs_in_the_last_key_alone():
    count = directions.layerwise().count
    assert count(jnp.zeros(3)) == 1
    assert count({"w1": jnp.zeros(3), "b1": jnp.zeros(3)}) == 1
    assert count([(jnp.zeros(3), jnp.zeros(3))] * 4) == 4
    assert count({"deep": [LAYERS, LAYERS], "scale": jnp.zeros(())}) == 7
    # The order is that of the leaves, also where two layers are nested.
    nested = {"a": jnp.zeros(1), "b": {"c": jnp.zeros(1)}, "d": jnp.zeros(1)}
    tree = directions.layerwise().sample(KEY, nested, None)
    assert present(tree) == {"a": (0,), "b": {"c": (1,)}, "d": (0,)}


@pytest.mark.slow
def test_a_box_around_an_array_is_no_layer_of_its_own():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 3, rngs=rngs)
            self.second = nnx.Linear(3, 1, rngs=rngs)

    params = nnx.state(Network(nnx.Rngs(0)), nnx.Param)
    assert directions.layerwise().count(params) == 2
    assert directions.layerwise(by="leaf").count(params) == 4


@pytest.mark.slow
def test_layerwise_adds_to_other_sources():
    both = directions.gaussian(4) + directions.layerwise()
    tree = both.sample(KEY, LAYERS, None)
    assert both.count(LAYERS) == 7
    assert tree["second"]["bias"].present == (0, 1, 2, 3, 5)
    assert tree["second"]["bias"].array.shape == (5, 1)
    assert tree["second"]["bias"].k == 7
    behind = directions.layerwise() + directions.gaussian(2)
    bias = behind.sample(KEY, LAYERS, None)["second"]["bias"]
    assert bias.present == (1, 3, 4)
    twice = directions.layerwise() + directions.layerwise()
    kernel = twice.sample(KEY, LAYERS, None)["first"]["kernel"]
    assert twice.count(LAYERS) == 6 and kernel.present == (0, 3)
    assert not np.any(kernel.array[0] == kernel.array[1])


def test_layerwise_cuts_the_chain_s_update_and_what_is_cut_already():
    updates = jax.tree.map(lambda p: normal(*p.shape), LAYERS)
    source = directions.layerwise(directions.incoming())
    tree = source.sample(KEY, LAYERS, updates)
    np.testing.assert_array_equal(
        tree["third"]["kernel"].dense()[2], updates["third"]["kernel"]
    )
    again = directions.layerwise(directions.layerwise(), by="leaf")
    tree = again.sample(KEY, LAYERS, None)
    assert again.count(LAYERS) == 15
    assert tree["second"]["kernel"].present == (3 * 3 + 1,)


@pytest.mark.slow
def test_directions_pass_through_jit():
    source = directions.gaussian(1) + directions.layerwise()
    eager = source.sample(KEY, LAYERS, None)
    jitted = jax.jit(lambda key: source.sample(key, LAYERS, None))(KEY)
    assert isinstance(jitted["third"]["kernel"], Stack)
    jax.tree.map(np.testing.assert_allclose, jitted, eager)


def test_a_number_of_directions_that_depends_on_the_parameters_is_no_k():
    assert (directions.gaussian(3) + directions.incoming()).count(PARAMS) == 4
    both = directions.gaussian(3) + directions.layerwise()
    with pytest.raises(ValueError, match=r"ask for count\(params\)"):
        both.k  # noqa: B018


def test_layerwise_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match='"layer" or "leaf"; got \'block\''):
        directions.layerwise(by="block")
    with pytest.raises(TypeError, match="source of directions; got 3"):
        directions.layerwise(3)


def test_sparse_directions_have_unit_covariance_and_the_zeros_asked_for():
    v = directions.sparse(20_000, 0.75).sample(KEY, jnp.zeros(3), None)
    np.testing.assert_allclose(v.T @ v / 20_000, np.eye(3), atol=0.06)
    np.testing.assert_allclose(np.mean(v == 0), 0.75, atol=0.01)
    with pytest.raises(ValueError, match="rate must be at least 0 and below 1"):
        directions.sparse(2, 1.0)


def test_orthonormal_directions_are_a_frame_over_all_the_leaves():
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    tree = directions.orthonormal(8).sample(KEY, params, None)
    v = np.concatenate([tree["a"].reshape(8, 6), tree["b"]], axis=1)
    np.testing.assert_allclose(v @ v.T, np.eye(8), atol=1e-9)
    np.testing.assert_allclose(v.T @ v, np.eye(8), atol=1e-9)
    with pytest.raises(ValueError, match=r"orthonormal\(9\) needs as many parameters"):
        directions.orthonormal(9).sample(KEY, params, None)


@pytest.mark.slow
def test_history_spans_the_last_steps_whoever_made_them():
    iterates = np.cumsum(normal(6, 5), axis=0)
    source = directions.history(3)
    state = source.init(jnp.asarray(iterates[0]))
    for n, x in enumerate(iterates):
        state = source.advance(state, jnp.asarray(x))
        v = np.asarray(source.sample(KEY, x, None, state))
        steps = np.diff(iterates[: n + 1], axis=0)[-3:]
        taken = len(steps)
        assert np.sum(np.any(v != 0, axis=1)) == taken
        # The projection onto the span of the steps is that onto the directions.
        np.testing.assert_allclose(
            v.T @ v, np.linalg.pinv(steps) @ steps if taken else 0, atol=1e-9
        )


def test_steps_that_depend_on_each_other_count_once():
    source = directions.history(2)
    state = source.init(jnp.zeros(3))
    for x in ([0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]):
        state = source.advance(state, jnp.array(x))
    v = np.asarray(source.sample(KEY, None, None, state))
    np.testing.assert_allclose(v.T @ v, np.diag([1.0, 0, 0]), atol=1e-12)


def test_a_history_leaves_out_what_depends_on_other_steps_to_rounding():
    source = directions.history(3)

    @jax.jit
    def gram_of(first, other):
        state = source.init(first)
        steps = jnp.stack([0 * first, first, jnp.float32(0.3) * first, other])
        for x in jnp.cumsum(steps, 0):
            state = source.advance(state, x)
        v = source.sample(None, first, None, state)
        return v @ v.T

    for seed in range(8):
        first, other = normal(2, 40, seed=seed).astype("float32")
        found = gram_of(first, other)
        # Two are orthonormal; the third is zero, and not a unit vector of rounding.
        assert np.sum(np.diag(found) == 0) == 1
        np.testing.assert_allclose(found @ found, found, atol=1e-3)
        np.testing.assert_allclose(np.trace(found), 2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["newton", "saddle_free", "damped"])
def test_a_history_with_random_directions_is_conjugate_gradients_or_better(solver):
    # On a quadratic, the last step and the gradient span the step of conjugate
    # gradients, which ends after as many steps as there are parameters.
    hessian = jnp.diag(jnp.array([1.0, 3.0, 10.0, 30.0]))
    loss = lambda x: x @ hessian @ x / 2
    tx = optax.chain(
        fomoh_jax.scale_by_hyperplane(
            directions.incoming() + directions.history(1),
            getattr(solvers, solver)(*([1e-12] if solver == "damped" else [])),
        ),
        optax.scale(-1.0),
    )

    @jax.jit
    def step(x, state):
        updates, state = tx.update(jax.grad(loss)(x), state, x, value_fn=loss)
        return optax.apply_updates(x, updates), state

    x = jnp.ones(4)
    state = tx.init(x)
    for _ in range(4):
        x, state = step(x, state)
    assert loss(x) < 1e-18


@pytest.mark.parametrize(
    "mask", [{"w": False, "b": True}, lambda p: {"w": False, "b": True}]
)
def test_masked_parameters_stay_where_they_are_and_cost_nothing(mask):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    loss = lambda p: jnp.sum((p["w"] ** 2 + p["b"]) ** 2)
    source = directions.masked(directions.gaussian(3), mask)
    tx = optax.chain(fomoh_jax.scale_by_hyperplane(source), optax.scale(-1.0))
    state = tx.init(params)
    update = jax.jit(functools.partial(tx.update, value_fn=loss))
    updates, _ = update(None, state, params)
    np.testing.assert_array_equal(updates["w"], 0)
    # All of b moves: Newton's step for b alone, to its minimum at -1.
    np.testing.assert_allclose(updates["b"], -2 * np.ones(3), rtol=1e-6)


def test_masks_that_do_not_fit_are_refused():
    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    for mask, message in (
        ({"w": True}, "mask must be a tree like params"),
        ({"w": 1, "b": True}, "mask must hold Python Booleans"),
        (False, "mask holds all of the parameters fixed"),
    ):
        source = directions.masked(directions.gaussian(1), mask)
        with pytest.raises(ValueError, match=message):
            source.sample(KEY, params, None)
    with pytest.raises(TypeError, match="base must be a source"):
        directions.masked(3, True)


@pytest.mark.slow
def test_the_state_of_a_sum_is_that_of_its_parts_and_goes_through_layers():
    source = directions.gaussian(1) + directions.layerwise(directions.history(1))
    state = source.init(LAYERS)
    state = source.advance(state, LAYERS)
    assert isinstance(state[1], directions.HistoryState)
    tree = source.draw(KEY, LAYERS, None, state)
    assert present(tree)["second"]["bias"] == (0, 2)


@pytest.mark.slow
def test_the_line_search_along_adam_s_step_is_exact():
    hessian = jnp.diag(jnp.array([1.0, 30.0]))
    loss = lambda x: x @ hessian @ x / 2
    tx = optax.chain(
        optax.scale_by_adam(),
        fomoh_jax.scale_by_hyperplane(directions.incoming()),
        optax.scale(-1.0),
    )
    x = jnp.array([3.0, 1.0])
    gradient = jax.grad(loss)(x)
    update = jax.jit(functools.partial(tx.update, value_fn=loss))
    updates, _ = update(gradient, tx.init(x), x)
    step, _ = optax.scale_by_adam().update(gradient, optax.scale_by_adam().init(x))
    expected = -(gradient @ step) / (step @ hessian @ step) * step
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
