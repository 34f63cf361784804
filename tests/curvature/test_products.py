"""Products by forward passes against ``jax.hessian``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import fomoh_jax
from fomoh_jax import plans
from fomoh_jax.curvature import hvp
from tests.curvature.problems import (
    HESSIAN,
    PRIMALS,
    SIZE,
    UNRAVEL,
    wave,
)
from tests.programs import PROGRAMS
from tests.reference import assert_close, normal

VECTOR = normal(SIZE, seed=7)


@pytest.mark.parametrize(
    "plan", ["auto", plans.forward(4), plans.forward(6), plans.adjoint()], ids=str
)
def test_a_product_is_exact(plan):
    product = lambda v: hvp(wave, PRIMALS, (v, None), plan=plan)[0]
    actual = jax.jit(product)(UNRAVEL(VECTOR))
    assert_close(actual, UNRAVEL(HESSIAN @ VECTOR))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_product_is_split_over_devices_of_any_number(chunk_size, mapped):
    plan = plans.split("basis", chunk_size)
    product = lambda v: hvp(wave, PRIMALS, (v, None), plan=plan)[0]
    mesh = jax.make_mesh((8,), ("basis",), axis_types=(AxisType.Auto,))
    if mapped:
        everywhere = {"in_specs": PartitionSpec(), "out_specs": PartitionSpec()}
        product = jax.shard_map(product, mesh=mesh, **everywhere)
    with jax.set_mesh(mesh):
        actual = jax.jit(product)(UNRAVEL(VECTOR))
    assert_close(actual, UNRAVEL(HESSIAN @ VECTOR))


def test_a_product_through_a_loop_that_reverse_mode_cannot_take():
    fun, (x,) = PROGRAMS["while"]
    scalar = lambda x: jnp.sum(jnp.sin(fun(x)))
    v = normal(3, seed=3)
    expected = jax.jit(lambda v: jax.jvp(jax.jacfwd(scalar), (x,), (v,))[1])(v)
    assert_close(jax.jit(lambda v: hvp(scalar, (x,), (v,))[0])(v), expected)


@pytest.mark.slow
def test_what_is_held_fixed_takes_no_part():
    params, powers = PRIMALS
    v = {"b": jnp.array([1.0, -2.0]), "w": None}
    product, rest = jax.jit(lambda v: hvp(wave, (params, powers), (v, None)))(v)
    assert rest is None and product["w"] is None
    of_b = jax.hessian(lambda b: wave({**params, "b": b}, powers))(params["b"])
    assert_close(product["b"], of_b @ v["b"])


@pytest.mark.slow
def test_products_can_be_batched_and_differentiated():
    fun, x, v = lambda x: jnp.sum(x**4), normal(3), normal(4, 3, seed=1)
    product = lambda x, v: hvp(fun, (x,), (v,))[0]
    batched = jax.jit(jax.vmap(product, (None, 0)))
    assert_close(batched(x, v), 12 * x**2 * v)
    assert_close(jax.jit(jax.jacrev(product))(x, v[0]), jnp.diag(24 * x * v[0]))


@pytest.mark.slow
@pytest.mark.optimised
def test_mixed_and_half_precision_keep_their_dtypes():
    x = jnp.arange(1.0, 3.0, dtype=jnp.bfloat16), normal(2)
    fun = lambda a, b: jnp.sum(a.astype(b.dtype) ** 3 * b)
    v = jnp.ones_like(x[0]), jnp.ones(2)
    with jax.numpy_dtype_promotion("strict"):
        product = jax.jit(lambda x: hvp(fun, x, v, plan=plans.forward(3)))(x)
    expected = jax.jvp(jax.jacfwd(fun, (0, 1)), x, v)[1]
    assert [p.dtype for p in product] == [jnp.bfloat16, jnp.float64]
    for actual, exact in zip(product, expected):
        np.testing.assert_allclose(actual.astype(exact.dtype), exact, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_product_takes_a_fraction_of_the_hessian():
    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    ws = [jax.ShapeDtypeStruct((6, 6), jnp.float32)] * 2
    x = jnp.ones((4, 6), jnp.float32)
    on_data = lambda ws: loss(ws, x)

    def flops(fun, *args):
        cost = jax.jit(fun).lower(*args).compile().cost_analysis()
        return (cost[0] if isinstance(cost, list) else cost)["flops"]

    for plan in (plans.forward(), plans.adjoint()):
        product = flops(lambda ws, v: hvp(on_data, (ws,), (v,), plan=plan), ws, ws)
        assert product < flops(fomoh_jax.hessian(on_data, plan=plan), ws) / 8
