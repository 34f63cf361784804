"""Directions that are known to be zero on a leaf: the same model, for less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import fomoh_jax
from fomoh_jax import Stack, plans
from fomoh_jax._hyperdual import directional_derivatives
from fomoh_jax._hyperdual.channels import is_channel
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.pair_forms import Diagonal, Pairs
from tests.programs import PROGRAMS, cnn, cnn_arguments, mlp
from tests.reference import (
    assert_close,
    assert_symmetric,
    jitted,
    nested_model,
    normal,
    partly_slow,
)

K = 4
SEVERAL_LEAVES = [
    name for name, (_, primals) in PROGRAMS.items() if len(jax.tree.leaves(primals)) > 1
]


def stacked_directions(primals, subsets):
    """Random directions of which each leaf holds a subset."""
    leaves, structure = jax.tree.flatten(primals)
    return structure.unflatten(
        Stack(normal(len(present), *jnp.shape(x), seed=seed), 0, tuple(present), K)
        for seed, (x, present) in enumerate(zip(leaves, subsets))
    )


def random_subsets(primals, seed):
    rng = np.random.default_rng(seed)
    kept = rng.random((len(jax.tree.leaves(primals)), K)) < 0.5
    return [np.flatnonzero(row).tolist() for row in kept]


def dense(directions):
    return jax.tree.map(lambda v: v.dense(), directions, is_leaf=is_channel)


def assert_zeros_change_nothing(fun, primals, v, *, adjoint=True):
    """Every transformation on stacks, beside nested jvp on dense directions."""

    @jax.jit
    def ours(primals, v):
        model = fomoh_jax.quadratic_model
        models = [model(fun, primals, v), model(fun, primals, v, plan=plans.forward(1))]
        if adjoint:
            models.append(model(fun, primals, v, plan=plans.adjoint()))
        slope = directional_derivatives(fun, primals, v)
        return models, fomoh_jax.directional_curvature(fun, primals, v), slope

    models, along, slope = ours(primals, v)
    expected = nested_model(fun, primals, dense(v))
    for model in models:
        assert_close(model, expected)
        assert_symmetric(model.curvature)
    each = np.arange(K)
    diagonal = jax.tree.map(lambda x: x[each, each], expected.curvature)
    curve = fomoh_jax.DirectionalCurvature(*expected[:2], diagonal)
    assert_close(along, curve)
    assert_close(slope, expected[:2])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", partly_slow(SEVERAL_LEAVES))
def test_a_random_subset_on_each_leaf_gives_the_dense_model(name):
    fun, primals = PROGRAMS[name]
    v = stacked_directions(primals, random_subsets(primals, len(name)))
    assert_zeros_change_nothing(fun, primals, v)


@pytest.mark.slow
def test_a_random_subset_on_each_leaf_of_a_cnn_gives_the_dense_model():
    params, images, labels = cnn_arguments()
    loss = lambda params: cnn(params, images, labels)
    v = stacked_directions((params,), random_subsets(params, 1))
    assert_zeros_change_nothing(loss, (params,), v)


@pytest.mark.parametrize(
    "kind", partly_slow(["scan", "while", "cond", "remat", "shard_map"])
)
def test_control_flow_takes_partly_present_channels(kind):
    """Two leaves, each with directions of its own, into the same inner program."""

    def body(x, y):
        return jnp.sin(x * y) + x

    def loop(x, y):
        return jax.lax.scan(lambda c, y: (body(c, y), c * y), x, jnp.stack([y, y * y]))

    programs = {
        "scan": loop,
        "while": lambda x, y: jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, body(c[1], y)), (0, x)
        )[1],
        "cond": lambda x, y: jax.lax.cond(y[0] > 0, body, lambda x, y: x**2, x, y),
        "remat": jax.checkpoint(lambda x, y: body(body(x, y), y)),
        "shard_map": jax.shard_map(
            lambda x, y: body(x, y) + x,
            mesh=jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,)),
            in_specs=(P("d"), P()),
            out_specs=P("d"),
        ),
    }
    primals = (jnp.array([0.5, -0.3, 1.2]), jnp.array([0.7, 0.2, 0.4]))
    for subsets in ([[0], [1, 3]], [[0, 2], []], [[1], [1]]):
        v = stacked_directions(primals, subsets)
        assert_zeros_change_nothing(programs[kind], primals, v, adjoint=kind != "while")


subsets = st.lists(st.integers(0, K - 1), unique=True, max_size=K).map(sorted)


@pytest.mark.slow
@settings(max_examples=8)
@given(st.lists(subsets, min_size=4, max_size=4))
def test_any_subsets_give_the_dense_model(each):
    fun, primals = mlp(jnp.tanh)
    v = stacked_directions(primals, each)
    model = jitted(fomoh_jax.quadratic_model)
    assert_close(model(fun, primals, v), model(fun, primals, dense(v)))


@pytest.mark.slow
def test_large_products_of_partly_present_stacks():
    """Large enough for their cross terms to be polarised."""
    a, b = normal(128, 128), normal(128, 128, seed=1)
    for subsets in ([[0, 2], [0, 2]], [[0, 1, 3], [2]], [[1], [1]], [[], [1, 2]]):
        primals, product = (a, b), lambda a, b: jnp.mean(jnp.sin(a @ b / 100))
        v = stacked_directions(primals, subsets)
        model = jitted(fomoh_jax.quadratic_model)(product, primals, v)
        assert_close(model, nested_model(product, primals, dense(v)))


@pytest.mark.slow
def test_stacks_and_arrays_mix_with_none():
    fun, (params, x) = mlp(jnp.tanh)
    v = {
        "w1": Stack(normal(2, 3, 4), 0, (1, 2), 3),
        "b1": None,
        "w2": normal(3, 4, 2, seed=1),
    }
    full = {"w1": v["w1"].dense(), "b1": jnp.zeros((3, 4)), "w2": v["w2"]}
    assert_close(
        jitted(fomoh_jax.quadratic_model)(fun, (params, x), (v, None)),
        nested_model(lambda p: fun(p, x), (params,), (full,)),
    )


def test_stacks_vmap_over_their_arrays():
    fun = lambda x, y: jnp.sum(jnp.sin(x * y))
    x, y, v = normal(3), normal(3, seed=1), normal(5, 1, 3, seed=2)

    def ours(array):
        directions = (Stack(array, 0, (0,), 2), Stack(2 * array, 0, (1,), 2))
        return fomoh_jax.quadratic_model(fun, (x, y), directions)

    stacked = jax.tree.map(lambda *rows: np.stack(rows), *map(jax.jit(ours), v))
    assert_close(jax.jit(jax.vmap(ours))(v), stacked)


# What is not carried.


def carried(fun, form, *numbers):
    """The number that comes out."""
    jaxpr = jax.make_jaxpr(fun)(*(n.primal for n in numbers))
    return interpret(jaxpr, form, numbers)[0]


def only(index, *shape):
    """A number that moves along one direction."""
    return HyperDual(normal(*shape), Stack(normal(1, *shape, seed=1), 0, (index,), 3))


def pairs_of(form, number):
    if number.seconds.is_zero:
        return set()
    i, j = form.pairs
    return {(int(i[q]), int(j[q])) for q in number.seconds.indices}


@pytest.mark.slow
def test_a_network_carries_the_pairs_of_the_layers_before():
    form = Pairs(2)
    x = HyperDual(normal(5, 3))
    w1, w2 = only(0, 3, 4), only(1, 4, 2)
    before = carried(jnp.matmul, form, x, w1)
    assert before.tangents.present == (0,) and before.seconds.is_zero
    hidden = carried(jnp.tanh, form, before)
    assert hidden.tangents.present == (0,) and pairs_of(form, hidden) == {(0, 0)}
    assert hidden.seconds.array.shape[hidden.seconds.axis] == 1
    # The second layer is linear in its own weights.
    out = carried(jnp.matmul, form, hidden, w2)
    assert out.tangents.indices == (0, 1)
    assert pairs_of(form, out) == {(0, 0), (0, 1)}
    curved = carried(jnp.tanh, form, out)
    assert pairs_of(form, curved) == {(0, 0), (0, 1), (1, 1)}


def test_directions_that_do_not_meet_have_no_seconds():
    form = Pairs(3)
    a, b, c = (only(i, 4) for i in range(3))
    apart = carried(lambda a, b, c: jnp.sin(a) + jnp.exp(b) + c, form, a, b, c)
    assert apart.tangents.indices == (0, 1, 2)
    assert pairs_of(form, apart) == {(0, 0), (1, 1)}
    product = carried(lambda a, b: a * b, form, a, b)
    assert pairs_of(form, product) == {(0, 1)}
    diagonal = carried(lambda a, b: a * b, Diagonal(3), a, b)
    assert diagonal.seconds.is_zero


def flops(function, *args):
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return analysis["flops"]


@pytest.mark.slow
@pytest.mark.optimised
def test_ten_layers_cost_at_most_035_of_a_dense_hyperplane():
    layers, width, batch = 10, 64, 64
    params = [
        (normal(width, width, seed=seed) / width**0.5, jnp.zeros(width))
        for seed in range(layers)
    ]

    def loss(params, x):
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return jnp.mean(x**2)

    def model(params, v, x):
        return fomoh_jax.quadratic_model(
            loss, (params, x), (v, None), plan=plans.forward()
        )

    source = fomoh_jax.directions.layerwise()
    v = source.sample(jax.random.key(0), params, None)
    assert source.count(params) == layers
    x = normal(batch, width)
    assert flops(model, params, v, x) <= 0.35 * flops(model, params, dense(v), x)
    # Along them alone: what one layer moves is not carried beside the others.
    along = lambda params, v, x: fomoh_jax.directional_curvature(
        loss, (params, x), (v, None)
    )
    assert flops(along, params, v, x) <= 0.35 * flops(along, params, dense(v), x)


# What is refused.


@pytest.mark.parametrize(
    ("static", "error", "match"),
    [
        (((0, 1), 5), ValueError, r"\['b'\] has 5.*has 4"),
        (((1, 0), 4), ValueError, r"present must be ascending"),
        (((1, 1), 4), ValueError, r"got \(1, 1\)"),
        (((1, 4), 4), ValueError, r"within 0 to size - 1 = 3"),
        (((-1, 1), 4), ValueError, r"\[0\]\['b'\]\.present"),
        (([0, 1], 4), TypeError, r"tuple of Python integers"),
        (((0, 1.0), 4), TypeError, r"got \(0, 1\.0\)"),
        (((0, 1), 4.0), TypeError, r"size must be a Python integer"),
        (((0, 1), None), TypeError, r"size must be a Python integer; got None"),
        (((0, 1, 2), 4), ValueError, r"\[len\(present\), 3\].*\[2, 3"),
        (((0,), 4), ValueError, r"\['b'\]\.array must have shape"),
    ],
)
def test_stacks_that_make_no_sense_are_refused(static, error, match):
    present, size = static
    assert_refused(Stack(normal(2, 3), 0, present, size), error, match)


def test_stacks_of_another_dtype_or_along_another_axis_are_refused():
    single = Stack(normal(2, 3).astype("float32"), 0, (0, 1), 4)
    assert_refused(single, TypeError, "dtype of its")
    assert_refused(Stack(normal(3, 4), 1), ValueError, r"axis must be 0 .*got 1")


def assert_refused(leaf, error, match):
    x = {"b": jnp.ones(3), "c": jnp.ones(3)}
    v = {"b": leaf, "c": jnp.ones((4, 3))}
    loss = lambda x: jnp.sum(x["b"] * x["c"])
    with pytest.raises(error, match=match):
        fomoh_jax.quadratic_model(loss, (x,), ({"c": v["c"], "b": v["b"]},))


def test_stacks_stand_for_arrays_only():
    v = Stack(normal(1, 3), 0, (0,), 2)
    loss = lambda x: jnp.sum(x["b"])
    x = {"b": jnp.ones(3)}
    with pytest.raises(TypeError, match="must have the structure of primals"):
        fomoh_jax.quadratic_model(loss, (x,), (v,))
    with pytest.raises(TypeError, match=r"tangents1\[0\] must have the structure"):
        fomoh_jax.hyper_jvp(jnp.sum, (x["b"],), (v,), (v,))
