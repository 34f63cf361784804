"""Maps over devices and over named axes: theirs inside ours, and ours inside theirs."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

import fomoh_jax
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    normal,
    second_jvp,
)

MESH = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))


SPLIT = P("d")


def split(fun, in_specs=SPLIT, out_specs=SPLIT, **options):
    return jax.shard_map(
        fun, mesh=MESH, in_specs=in_specs, out_specs=out_specs, **options
    )


def test_shard_map_inside_ours():
    fun = split(
        lambda x, w: (lax.psum(jnp.sum(x**3 * w), "d"), jnp.sin(x) * w, w**2, x > 0),
        in_specs=(P("d"), P()),
        out_specs=(P(), P("d"), P(), P("d")),
    )
    assert_agrees_with_nested_jvp(
        lambda x, w: fun(jnp.sin(x), w)[:3], normal(3), jnp.array(0.3)
    )
    chunked = fomoh_jax.hessian(lambda x: fun(x, 2.0)[0], chunk_size=2)(normal(3))
    assert_close(chunked, jnp.diag(12 * normal(3)))


def test_shard_map_without_checks_of_replication():
    fun = split(lambda x: lax.psum(x**3, "d"), out_specs=P(), check_vma=False)
    assert_agrees_with_nested_jvp(fun, normal(3))


def test_a_custom_vjp_inside_shard_map_is_seen_through():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (g * 0,))
    fun = lambda x: jnp.sum(split(cube)(x))
    assert_close(fomoh_jax.hessian(fun)(normal(3)), jnp.diag(6 * normal(3)))


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


def test_collectives_of_a_vmap_inside_ours():
    fun = jax.vmap(collectives, axis_name="i")
    assert_agrees_with_nested_jvp(fun, normal(3))


def test_collectives_of_a_vmap_around_ours():
    x, v, w = normal(3), normal(3, seed=1), normal(3, seed=2)
    wrap = lambda jvp: jax.vmap(
        lambda x, v, w: jvp(collectives, (x,), (v,), (w,)), axis_name="i"
    )
    assert_close(wrap(fomoh_jax.hyper_jvp)(x, v, w), wrap(second_jvp)(x, v, w))


def test_in_axes_and_out_axes():
    fun = jax.vmap(lambda x, y: jnp.sin(x) * y, in_axes=(1, None), out_axes=1)
    assert_agrees_with_nested_jvp(fun, normal(2, 3), normal(2, seed=1))


SEVERAL_DEVICES = """
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
import fomoh_jax

jax.config.update("jax_enable_x64", True)
auto = (jax.sharding.AxisType.Auto,)
mesh = jax.make_mesh((4,), ("d",), axis_types=auto)

@jax.custom_vjp
def square(x):
    return x**2

square.defvjp(lambda x: (x**2, x), lambda x, g: (g * 0,))

def loss(w, x):
    local = lambda w, x: lax.pmean(jnp.mean(square(jnp.tanh(x @ w))), "d")
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())(w, x)

plain = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
w, x = jnp.arange(3.0) / 3, jnp.sin(jnp.arange(24.0)).reshape(8, 3)
expected = jax.hessian(plain)(w, x)
assert jnp.max(jnp.abs(fomoh_jax.hessian(loss)(w, x) - expected)) < 1e-14
assert jnp.max(jnp.abs(jax.jit(fomoh_jax.hessian(loss))(w, x) - expected)) < 1e-14
v = jnp.eye(3)
inside = jax.shard_map(
    lambda w, x: lax.pmean(
        fomoh_jax.quadratic_model(plain, (w, x), (v, None)).curvature, "d"),
    mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
assert jnp.max(jnp.abs(jax.jit(inside)(w, x) - expected)) < 1e-14
ring = jax.shard_map(
    lambda x: x * lax.ppermute(x**2, "d", [(i, (i + 1) % 4) for i in range(4)]),
    mesh=mesh, in_specs=P("d"), out_specs=P("d"))
rolled = lambda x: x * jnp.roll(x**2, 1)
y = jnp.arange(1.0, 5)
difference = fomoh_jax.hessian(ring)(y) - jax.hessian(rolled)(y)
assert jnp.max(jnp.abs(difference)) < 1e-14
"""


def test_on_several_devices():
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", SEVERAL_DEVICES],
        check=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
