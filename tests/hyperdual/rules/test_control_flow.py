"""Loops and branches with the extra channels beside the primal."""

import jax
import jax.numpy as jnp
from jax import lax

import fomoh_jax
from fomoh_jax.hyperdual import interpreter
from tests.reference import assert_agrees_with_nested_jvp, assert_close, normal


def test_scan_in_reverse_with_unroll_and_constants():
    weights = normal(3, 3, seed=2)

    def fun(x, scale):
        def step(carry, slice_):
            carry = jnp.sin(weights @ carry) * scale + slice_
            return carry, (carry**2, slice_)

        return lax.scan(step, jnp.zeros(3), x, reverse=True, unroll=2)

    assert_agrees_with_nested_jvp(fun, normal(5, 3), normal(3, seed=1))


def test_a_carry_whose_channels_appear_one_iteration_at_a_time():
    def fun(x):
        def step(carry, _):
            a, b, c = carry
            return (jnp.sin(x) * x, a * 2, b * 3), c

        return lax.scan(step, (jnp.ones(2),) * 3, length=4)

    assert_agrees_with_nested_jvp(fun, normal(2))


def test_nested_scans():
    def fun(x):
        def outer(carry, row):
            inner = lambda c, y: (jnp.sin(c * y), c)
            carry, ys = lax.scan(inner, carry, row)
            return carry, jnp.sum(ys * row)

        return lax.scan(outer, x[0, 0], x)

    assert_agrees_with_nested_jvp(fun, normal(3, 2))


def test_scan_with_no_iterations():
    def fun(x):
        return lax.scan(lambda c, y: (c * y, c), x[0], x[:0] ** 2)

    assert_agrees_with_nested_jvp(fun, normal(2))


def test_scan_after_jax_has_differentiated_it():
    # jvp of a scan interleaves its operands on recent versions of jax.
    def fun(x):
        step = lambda c, y: (jnp.sin(c) * y, c)
        loss = lambda x: jnp.sum(lax.scan(step, x[0], x)[1])
        return jax.jvp(loss, (x,), (x,))[1] + jnp.sum(jax.grad(loss)(x) ** 2)

    assert_agrees_with_nested_jvp(fun, normal(4), k=2)


def test_memory_of_a_scan_does_not_grow_with_its_length():
    def temporaries(length):
        def fun(x):
            step = lambda c, _: (jnp.sin(x @ c), None)
            return lax.scan(step, jnp.ones(32), length=length)[0]

        x, v = jnp.ones((32, 32)), jnp.ones((3, 32, 32))
        model = lambda x, v: fomoh_jax.quadratic_model(fun, (x,), (v,))
        compiled = jax.jit(model).lower(x, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(200) == temporaries(20)


def test_while_with_a_trip_count_that_depends_on_the_primal():
    def fun(x, bound):
        halve = lambda s: (s[0] * jnp.sin(x[1]) * 0.5, s[1] + 1)
        return lax.while_loop(lambda s: jnp.abs(s[0]) > bound, halve, (x[0], 0))[0]

    for start in (1.0, 10.0):
        x = jnp.array([start, 1.0])
        assert_agrees_with_nested_jvp(lambda x: fun(x, 0.1), x)
    many = jnp.array([[1.0, 1.0], [10.0, 1.0], [0.01, 1.0]])
    hessian = fomoh_jax.hessian(lambda x: fun(x, 0.1))
    expected = jax.jacfwd(jax.jacfwd(lambda x: fun(x, 0.1)))
    assert_close(jax.vmap(hessian)(many), jax.vmap(expected)(many))


def test_the_predicate_of_a_while_loop_runs_as_often_as_in_jax(capfd):
    def unfinished(state):
        jax.debug.print("tested")
        return state[0] < 2

    def fun(x):
        return lax.while_loop(unfinished, lambda s: (s[0] + 1, s[1] * x), (0, x))[1]

    assert fun(3.0) == 27
    jax.effects_barrier()
    expected = capfd.readouterr().out
    assert fomoh_jax.hyper_jvp(fun, (3.0,), (1.0,), (1.0,))[3] == 18
    jax.effects_barrier()
    assert capfd.readouterr().out == expected


def test_fori_loop_and_map_and_associative_scan():
    fori = lambda x: lax.fori_loop(0, 4, lambda i, c: jnp.sin(c) * x[i % 3], x)
    assert_agrees_with_nested_jvp(fori, normal(3))
    assert_agrees_with_nested_jvp(
        lambda x: lax.map(lambda y: jnp.sin(y) * y, x), normal(3)
    )
    assert_agrees_with_nested_jvp(
        lambda x: lax.associative_scan(jnp.multiply, x), normal(5)
    )


def test_switch_whose_branches_differ_in_which_channels_are_zero():
    branches = [
        lambda x: (jnp.ones(2), x),
        lambda x: (jnp.sin(x), jnp.zeros(2)),
        lambda x: (2 * x, x**2),
    ]
    for index in range(3):
        fun = lambda x, i=index: lax.switch(i + jnp.int32(x[0] * 0), branches, x)
        assert_agrees_with_nested_jvp(fun, normal(2))


def test_custom_root_and_linear_solve():
    matrix = normal(3, 3, seed=4) + 4 * jnp.eye(3)

    def root(a):
        newton = lambda f, x: lax.fori_loop(0, 30, lambda _, x: x - f(x) / 4, x)
        solve = lambda g, y: y / g(jnp.ones(()))
        return lax.custom_root(lambda x: x**3 / 3 + x - a, 0.0, newton, solve)

    assert_agrees_with_nested_jvp(lambda a: root(jnp.sin(a)), jnp.array(0.3))
    solve = lambda matvec, b: jnp.linalg.solve(matrix, b)
    assert_agrees_with_nested_jvp(
        lambda b: lax.custom_linear_solve(lambda x: matrix @ x, jnp.sin(b), solve),
        normal(3),
    )


def test_while_whose_predicate_vmap_has_batched():
    def fun(x):
        square = lambda a: lax.while_loop(
            lambda c: jnp.sum(c) < 10, lambda c: c * c + a, jnp.stack([a, 1.0])
        )
        return jax.vmap(square)(x)

    assert_agrees_with_nested_jvp(fun, jnp.array([1.5, 3.0, 20.0]))


def test_loops_and_branches_inside_shard_map():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("d")

    def fun(x):
        scanned = lax.scan(lambda c, y: (c * y, c + x), jnp.ones_like(x), x)[1]
        looped = lax.while_loop(
            lambda s: s[1] < 3, lambda s: (s[0] * x, s[1] + 1), (jnp.ones_like(x), 0)
        )[0]
        return scanned.sum(0) + lax.cond(x[0] > 9, jnp.ones_like, jnp.sin, x) + looped

    def model(x, v):
        return fomoh_jax.quadratic_model(fun, (x,), (v,)).curvature

    mapped = jax.shard_map(
        model,
        mesh=mesh,
        in_specs=(split, jax.sharding.PartitionSpec(None, "d")),
        out_specs=jax.sharding.PartitionSpec(None, None, "d"),
    )
    x, v = normal(3), normal(2, 3)
    assert_close(jax.jit(mapped)(x, v), model(x, v))


def test_scan_over_keys():
    def fun(x):
        step = lambda c, key: (c * jax.random.normal(key, ()) + jnp.sin(c), None)
        return lax.scan(step, x, jax.random.split(jax.random.key(0), 3))[0]

    assert_agrees_with_nested_jvp(fun, jnp.array(0.3))


def test_tracing_does_not_grow_exponentially_with_nesting(monkeypatch):
    applied = []
    original = interpreter._apply
    monkeypatch.setattr(
        interpreter, "_apply", lambda *args: applied.append(args) or original(*args)
    )

    def nest(depth, x):
        if not depth:
            return jnp.sin(x)
        return lax.scan(lambda c, _: (nest(depth - 1, c), None), x, length=2)[0]

    def equations(depth):
        applied.clear()
        model = lambda x: fomoh_jax.hyper_jvp(
            lambda x: nest(depth, x), (x,), (x,), (x,)
        )
        jax.make_jaxpr(model)(jnp.ones(3))
        return len(applied)

    assert equations(8) <= 4 * equations(2)
