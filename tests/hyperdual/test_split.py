"""The pairs of directions split over eight devices, against one device with all."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fomoh_jax
from fomoh_jax import Stack, directions, plans
from tests.programs import PROGRAMS, attention_arguments, attention_block, mlp
from tests.reference import assert_close, assert_symmetric, random_directions

K = 8


def mesh(*sizes, kind=AxisType.Auto):
    names = ("pairs", "batch")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))


def split(fun, primals, vectors, chunk_size=None):
    plan = plans.split("pairs", chunk_size)
    return fomoh_jax.quadratic_model(fun, primals, vectors, plan=plan)


@functools.cache
def on_one_device(name):
    fun, primals = PROGRAMS[name]
    model = jax.jit(lambda v: fomoh_jax.quadratic_model(fun, primals, v))
    return model(random_directions(primals, K))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "chunk_size"),
    [("attention", None), ("scan", 1), ("mlp_tanh", 3), ("solve", None)],
)
def test_the_model_is_that_of_one_device(name, chunk_size):
    fun, primals = PROGRAMS[name]
    vectors = random_directions(primals, K)
    # Four rows a device, so that a chunk of three overlaps the next.
    with jax.set_mesh(mesh(2, 4)):
        model = jax.jit(lambda v: split(fun, primals, v, chunk_size))(vectors)
    assert_close(model, on_one_device(name))
    assert_symmetric(model.curvature)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_other_axis_is_left_to_the_batch(kind):
    loss, (params, x) = mlp(jnp.tanh)
    x = jnp.concatenate([x, -x, x + 1])[:12]
    vectors = (random_directions(params, K), None)
    model = lambda v: fomoh_jax.quadratic_model(loss, (params, x), (v, None))
    expected = jax.jit(model)(vectors[0])
    used = mesh(4, 2, kind=kind)
    with jax.set_mesh(used):
        spread = jax.device_put(x, NamedSharding(used, PartitionSpec("batch")))
        program = jax.jit(lambda p, x, v: split(loss, (p, x), (v, None)))
        assert_close(program(params, spread, vectors[0]), expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "chunk_size"), [("mlp_tanh", None), ("attention", 1), ("scan", None)]
)
def test_inside_shard_map_no_other_is_made(name, chunk_size):
    fun, primals = PROGRAMS[name]
    vectors = random_directions(primals, K)
    everywhere = PartitionSpec()
    with jax.set_mesh(mesh(4, 2)):
        program = jax.shard_map(
            lambda v: split(fun, primals, v, chunk_size),
            in_specs=everywhere,
            out_specs=everywhere,
        )
        model = jax.jit(program)(vectors)
    assert_close(model, on_one_device(name))


@pytest.mark.parametrize(
    ("fun", "found"),
    [
        (lambda w, x: jnp.sum((w * x) ** 2), "the primals vary"),
        (lambda w, x: lax.psum(jnp.sum(w**2), "pairs"), "fun exchanges numbers"),
    ],
)
def test_devices_that_differ_in_more_than_their_pairs_are_refused(fun, found):
    w, x = jnp.ones(3), jnp.arange(2.0)
    vectors = jnp.ones((2, 3))
    with jax.set_mesh(mesh(2)):
        program = jax.shard_map(
            lambda x: split(fun, (w, x), (vectors, None)).curvature,
            in_specs=PartitionSpec("pairs"),
            out_specs=PartitionSpec(),
        )
        with pytest.raises(ValueError, match=rf"mesh_axis='pairs' splits.*{found}"):
            jax.eval_shape(program, x)


@pytest.mark.slow
def test_empty_results_and_no_directions_are_split():
    x, vectors = jnp.ones(3), random_directions(jnp.zeros(3), K)
    with jax.set_mesh(mesh(8)):
        model = split(lambda x: x[:0] ** 2, (x,), (vectors,))
        assert model.curvature.shape == (K, K, 0)
        model = split(lambda x: x**2, (x,), (vectors[:0],), 1)
        assert model.curvature.shape == (0, 0, 3)


def test_deferred_and_partly_present_directions_are_numbered_from_each_device_s_own():
    loss, (params, x) = mlp(jnp.tanh)
    source = directions.deferred(directions.gaussian(K))
    vectors = source.sample(jax.random.key(0), params, None)
    vectors["b1"] = Stack(jnp.ones((2, 4)), 0, (1, 6), K)
    dense = jax.tree.map(
        lambda v: v.dense(), vectors, is_leaf=lambda v: hasattr(v, "dense")
    )
    model = lambda v: fomoh_jax.quadratic_model(loss, (params, x), (v, None))
    expected = jax.jit(model)(dense)
    with jax.set_mesh(mesh(8)):
        model = jax.jit(lambda v: split(loss, (params, x), (v, None)))(vectors)
    assert_close(model, expected)


def test_what_has_no_derivative_and_aux_come_through():
    def fun(x):
        return (jnp.sum(x**3), jnp.argmax(x)), (x[0], x > 0)

    x, vectors = jnp.array([1.0, -2.0, 3.0]), random_directions(jnp.zeros(3), K)
    model = lambda x, plan: fomoh_jax.quadratic_model(
        fun, (x,), (vectors,), plan=plan, has_aux=True
    )
    expected = jax.jit(lambda x: model(x, "auto"))(x)
    with jax.set_mesh(mesh(8)):
        split = jax.jit(lambda x: model(x, plans.split("pairs")))(x)
    assert_close(split, expected)


@pytest.mark.slow
def test_gauss_newton_is_split_where_pairs_meet():
    loss, primals = mlp(jnp.tanh)
    square = lambda y: jnp.sum(jnp.cosh(y))
    vectors = random_directions(primals, K)
    model = functools.partial(fomoh_jax.gauss_newton_model, loss, square, primals)
    expected = jax.jit(model)(vectors)
    with jax.set_mesh(mesh(8)):
        split = jax.jit(functools.partial(model, plan=plans.split("pairs")))(vectors)
    assert_close(split, expected)


def test_the_step_of_the_optimiser_is_that_of_one_device():
    loss, (params, x) = mlp(jnp.tanh)

    def stepped(tx):
        update = jax.jit(lambda s: tx.update(None, s, params, value_fn=loss, x=x))
        return update(tx.init(params))[0]

    expected = stepped(fomoh_jax.fomoh_kd(K))
    with jax.set_mesh(mesh(8)):
        tx = fomoh_jax.fomoh_kd(K, plan=plans.split("pairs"))
        assert_close(stepped(tx), expected)


def test_the_optimiser_refuses_a_mesh_that_its_loss_cannot_be_closed_in():
    loss, (params, x) = mlp(jnp.tanh)
    tx = fomoh_jax.fomoh_kd(K, plan=plans.split("pairs"))
    with (
        jax.set_mesh(mesh(8, kind=AxisType.Explicit)),
        pytest.raises(
            ValueError, match=r"AxisType.Auto where.*'pairs': 'AxisType.Explicit'"
        ),
    ):
        tx.update(None, tx.init(params), params, value_fn=loss, x=x)


@pytest.mark.slow
@pytest.mark.optimised
def test_each_device_does_its_share_of_the_pairs():
    params, x = attention_arguments()
    loss = lambda p: jnp.sum(attention_block(p, x))

    def cost(k, **options):
        vectors = random_directions(params, k)
        way = lambda v: fomoh_jax.quadratic_model(loss, (params,), (v,), **options)
        compiled = jax.jit(way).lower(vectors).compile()
        flops = compiled.cost_analysis()["flops"]
        return flops, compiled.memory_analysis().temp_size_in_bytes

    with jax.set_mesh(mesh(8)):
        flops, size = cost(32, plan=plans.split("pairs"))
    all_flops, all_size = cost(32, plan=plans.forward())
    assert flops < 0.3 * all_flops
    assert size < 0.3 * all_size


def test_a_mesh_that_does_not_fit_is_refused():
    x, vectors = jnp.ones(3), random_directions(jnp.zeros(3), 12)
    with pytest.raises(
        ValueError, match=r"mesh_axis must name.*there is none.*set_mesh"
    ):
        split(jnp.sum, (x,), (vectors,))
    with jax.set_mesh(mesh(8)):
        with pytest.raises(ValueError, match=r"k=12 for 8 devices. Take k=8 or k=16"):
            split(jnp.sum, (x,), (vectors,))
        with pytest.raises(ValueError, match=r"k=3 for 8 devices. Take k=8"):
            split(jnp.sum, (x,), (vectors[:3],))
        with pytest.raises(ValueError, match=r"got 'rows', and there is 'pairs'"):
            rows = plans.split("rows")
            fomoh_jax.quadratic_model(jnp.sum, (x,), (vectors,), plan=rows)
