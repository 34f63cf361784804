"""Maps over devices and over named axes: theirs inside ours, and ours inside theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import fomoh_jax
from fomoh_jax import plans
from tests.programs import PROGRAMS
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    normal,
    partly_slow,
    random_directions,
    second_jvp,
)

MESH = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))


SPLIT = P("d")


def split(fun, in_specs=SPLIT, out_specs=SPLIT, **options):
    return jax.shard_map(
        fun, mesh=MESH, in_specs=in_specs, out_specs=out_specs, **options
    )


@pytest.mark.slow
def test_shard_map_inside_ours():
    fun = split(
        lambda x, w: (lax.psum(jnp.sum(x**3 * w), "d"), jnp.sin(x) * w, w**2, x > 0),
        in_specs=(P("d"), P()),
        out_specs=(P(), P("d"), P(), P("d")),
    )
    assert_agrees_with_nested_jvp(
        lambda x, w: fun(jnp.sin(x), w)[:3], normal(3), jnp.array(0.3)
    )
    cubes = lambda x: fun(x, 2.0)[0]
    chunked = jax.jit(fomoh_jax.hessian(cubes, plan=plans.forward(2)))(normal(3))
    assert_close(chunked, np.diag(12 * normal(3)))


def test_shard_map_without_checks_of_replication():
    fun = split(lambda x: lax.psum(x**3, "d"), out_specs=P(), check_vma=False)
    assert_agrees_with_nested_jvp(fun, normal(3))


def test_a_custom_vjp_inside_shard_map_is_seen_through():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (g * 0,))
    fun = lambda x: jnp.sum(split(cube)(x))
    hessian = jax.jit(fomoh_jax.hessian(fun))(normal(3))
    assert_close(hessian, np.diag(6 * normal(3)))


@pytest.mark.slow
def test_loops_and_branches_inside_shard_map():
    def fun(x):
        scanned = lax.scan(lambda c, y: (c * y, c + x), jnp.ones_like(x), x)[1]
        looped = lax.while_loop(
            lambda s: s[1] < 3, lambda s: (s[0] * x, s[1] + 1), (jnp.ones_like(x), 0)
        )[0]
        return scanned.sum(0) + lax.cond(x[0] > 9, jnp.ones_like, jnp.sin, x) + looped

    model = lambda x, v: fomoh_jax.quadratic_model(fun, (x,), (v,)).curvature
    specs = {"in_specs": (P("d"), P(None, "d")), "out_specs": P(None, None, "d")}
    x, v = normal(3), normal(2, 3)
    assert_close(jax.jit(split(model, **specs))(x, v), model(x, v))
    assert_agrees_with_nested_jvp(split(fun), x)


def collectives(y):
    total = y / lax.pmean(y**2, "i") * lax.axis_index("i")
    total += lax.all_gather(jnp.sin(y), "i").sum()
    total += lax.ppermute(y**2, "i", [(0, 1), (1, 2), (2, 0)])
    total += lax.psum_scatter(jnp.stack([y, y**2, y**3]), "i")
    return total + lax.all_to_all(jnp.stack([y, y**2, y**3]), "i", 0, 0)[1]


@pytest.mark.slow
def test_collectives_of_a_vmap_inside_ours():
    fun = jax.vmap(collectives, axis_name="i")
    assert_agrees_with_nested_jvp(fun, normal(3))


@pytest.mark.slow
def test_collectives_of_a_vmap_around_ours():
    x, v, w = normal(3), normal(3, seed=1), normal(3, seed=2)
    wrap = lambda jvp: jax.jit(
        jax.vmap(lambda x, v, w: jvp(collectives, (x,), (v,), (w,)), axis_name="i")
    )
    assert_close(wrap(fomoh_jax.hyper_jvp)(x, v, w), wrap(second_jvp)(x, v, w))


@pytest.mark.slow
def test_in_axes_and_out_axes():
    fun = jax.vmap(lambda x, y: jnp.sin(x) * y, in_axes=(1, None), out_axes=1)
    assert_agrees_with_nested_jvp(fun, normal(2, 3), normal(2, seed=1))


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, g: (g * 0,))


def devices(*sizes):
    kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, ("d", "k")[: len(sizes)], axis_types=kinds)


def test_a_sum_over_several_devices():
    def loss(w, x):
        local = lambda w, x: lax.pmean(jnp.mean(square(jnp.tanh(x @ w))), "d")
        map_over = {"mesh": devices(4), "in_specs": (P(), P("d")), "out_specs": P()}
        return jax.shard_map(local, **map_over)(w, x)

    plain = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    w, x = normal(3), normal(8, 3)
    expected = jax.jit(jax.hessian(plain))(w, x)
    assert_close(jax.jit(fomoh_jax.hessian(loss))(w, x), expected)


def test_a_ring_of_several_devices():
    ring = jax.shard_map(
        lambda x: x * lax.ppermute(x**2, "d", [(i, (i + 1) % 4) for i in range(4)]),
        mesh=devices(4),
        in_specs=P("d"),
        out_specs=P("d"),
    )
    expected = jax.jit(jax.hessian(lambda x: x * jnp.roll(x**2, 1)))(normal(4))
    assert_close(jax.jit(fomoh_jax.hessian(ring))(normal(4)), expected)


def recurrent(w, x):
    def body(h, x):
        h = jax.nn.relu(w @ h + x)
        return h, jax.nn.softplus(h)

    h, outs = lax.scan(body, jnp.zeros_like(x[0]), x)
    first = lax.cond(h[0] > 0, lambda h: h * w[0], jnp.ones_like, h)
    still = jax.nn.relu(lax.stop_gradient(w)) * w
    return jnp.mean(outs**3) + jnp.sum(first * h) + jnp.sum(still)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["rosenbrock", "softmax_cross_entropy", "cholesky", "while"]
)
def test_directions_of_which_each_device_has_some(name):
    fun, primals = PROGRAMS[name]
    vectors = random_directions(primals, 4)
    model = lambda v: fomoh_jax.quadratic_model(fun, primals, v).curvature
    split = {"mesh": devices(4), "in_specs": P("d"), "out_specs": P("d")}
    curvature = jax.jit(jax.shard_map(lambda v: model(v)[0], **split))(vectors)
    whole = jax.jit(model)(vectors)
    assert_close(curvature, jnp.moveaxis(jnp.diagonal(whole), -1, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    partly_slow(["auto", plans.adjoint(), plans.forward(1)]),
    ids=["whole", "adjoint", "chunks"],
)
def test_directions_and_a_batch_of_which_each_device_has_some(plan):
    """A mean over all devices, and what each has of its own beside what is shared."""

    def curvature(loss, v):
        return fomoh_jax.quadratic_model(loss, (w,), (v,), plan=plan).curvature

    def mean(w, x, over_devices=lambda y: y):
        halves = jnp.stack([recurrent(w, part) for part in x])
        return over_devices(halves.mean())

    def own(w, x):
        return jnp.mean(square(jnp.tanh(x @ w))), jnp.sum(w**4)

    w, x, v = normal(3, 3) / 3, normal(2, 5, 3, seed=1), normal(4, 3, 3, seed=2)

    def on_one(x, v):
        over_devices = lambda y: lax.pmean(y, "d")
        of_mean = curvature(lambda w: mean(w, x, over_devices), v)
        of_own = curvature(lambda w: own(w, x), v)
        return of_mean[None], jax.tree.map(lambda c: c[None, None], of_own)

    mapped = jax.shard_map(
        on_one,
        mesh=devices(2, 2),
        in_specs=(P("d"), P("k")),
        out_specs=(P("k"), (P("k", "d"), P("k", "d"))),
    )
    of_mean, of_own = jax.jit(mapped)(x, v)
    whole = jax.jit(lambda x, v: curvature(lambda w: mean(w, x), v))
    alone = jax.jit(lambda x, v: curvature(lambda w: own(w, x), v))
    for place, part in enumerate((v[:2], v[2:])):
        assert_close(of_mean[place], whole(x, part))
        for i in range(2):
            expected = alone(x[i : i + 1], part)
            assert_close(jax.tree.map(lambda c: c[place, i], of_own), expected)


@pytest.mark.parametrize(
    ("name", "check_vma", "reason"),
    [("own", True, "a result that does"), ("shared", False, "elsewhere")],
)
def test_no_sweep_back_goes_through_what_it_would_add_up(name, check_vma, reason):
    shared = lambda w, x: lax.psum(jnp.sum((w * x[0]) ** 2), "d")
    losses = {"shared": shared, "own": lambda w, x: shared(w, x) * jnp.sum(w) * x[0]}
    w, v = normal(3), normal(2, 3)

    def model(x):
        loss = lambda w: losses[name](w, x)
        model = fomoh_jax.quadratic_model(loss, (w,), (v,), plan=plans.adjoint())
        return model.curvature[None]

    split = {"mesh": devices(2), "in_specs": P("d"), "out_specs": P("d")}
    with pytest.raises(ValueError, match=rf"over the axis 'd'.*{reason}.*lax.pmean"):
        jax.eval_shape(jax.shard_map(model, check_vma=check_vma, **split), normal(2))
