"""Loops and branches with the extra channels beside the primal."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import fomoh_jax
from fomoh_jax._hyperdual import interpreter
from tests.reference import assert_agrees_with_nested_jvp, assert_close, normal, slow


@pytest.mark.slow
def test_scan_in_reverse_with_unroll_and_constants():
    weights = normal(3, 3, seed=2)

    def fun(x, scale):
        def step(carry, slice_):
            carry = jnp.sin(weights @ carry) * scale + slice_
            return carry, (carry**2, slice_)

        return lax.scan(step, jnp.zeros(3), x, reverse=True, unroll=2)

    assert_agrees_with_nested_jvp(fun, normal(5, 3), normal(3, seed=1))


@pytest.mark.slow
def test_a_carry_whose_channels_appear_one_iteration_at_a_time():
    def fun(x):
        def step(carry, _):
            a, b, c = carry
            return (jnp.sin(x) * x, a * 2, b * 3), c

        return lax.scan(step, (jnp.ones(2),) * 3, length=4)

    assert_agrees_with_nested_jvp(fun, normal(2))


@pytest.mark.slow
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


@pytest.mark.slow
def test_scan_after_jax_has_differentiated_it():
    # jvp of a scan interleaves its operands on recent versions of jax.
    def fun(x):
        step = lambda c, y: (jnp.sin(c) * y, c)
        loss = lambda x: jnp.sum(lax.scan(step, x[0], x)[1])
        return jax.jvp(loss, (x,), (x,))[1] + jnp.sum(jax.grad(loss)(x) ** 2)

    assert_agrees_with_nested_jvp(fun, normal(4), k=2)


@pytest.mark.slow
@pytest.mark.optimised
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_fori_loop_and_map_and_associative_scan():
    fori = lambda x: lax.fori_loop(0, 4, lambda i, c: jnp.sin(c) * x[i % 3], x)
    assert_agrees_with_nested_jvp(fori, normal(3))
    assert_agrees_with_nested_jvp(
        lambda x: lax.map(lambda y: jnp.sin(y) * y, x), normal(3)
    )
    assert_agrees_with_nested_jvp(
        lambda x: lax.associative_scan(jnp.multiply, x), normal(5)
    )


@pytest.mark.slow
def test_switch_whose_branches_differ_in_which_channels_are_zero():
    branches = [
        lambda x: (jnp.ones(2), x),
        lambda x: (jnp.sin(x), jnp.zeros(2)),
        lambda x: (2 * x, x**2),
    ]
    for index in range(3):
        fun = lambda x, i=index: lax.switch(i + jnp.int32(x[0] * 0), branches, x)
        assert_agrees_with_nested_jvp(fun, normal(2))


@pytest.mark.parametrize("shape", [(), (2,)])
def test_custom_root(shape):
    def root(a):
        newton = lambda f, x: lax.fori_loop(0, 40, lambda _, x: x - f(x) / 4, x)
        solve = lambda g, y: y / g(jnp.ones(shape))
        function = lambda x: x**3 / 3 + x - jnp.sin(a)
        return lax.custom_root(function, jnp.zeros(shape), newton, solve)

    assert_agrees_with_nested_jvp(root, 0.3 * normal(*shape))


def test_branches_by_platform_stay_with_their_platform():
    elsewhere = Primitive("nothing_lowers_this_on_a_cpu")
    elsewhere.def_abstract_eval(lambda x: x)
    ad.deflinear(elsewhere, lambda t: [elsewhere.bind(t)])
    batching.defvectorized(elsewhere)
    branches = {"cpu": jnp.sin, "tpu": elsewhere.bind}
    mlir.register_lowering(elsewhere, mlir.lower_fun(jnp.cos, False), platform="tpu")
    mlir.register_lowering(elsewhere, mlir.lower_fun(jnp.cos, False), platform="cuda")
    for default in (None, elsewhere.bind):
        fun = lambda x: lax.platform_dependent(x, default=default, **branches)
        hessian = fomoh_jax.hessian(lambda x: jnp.sum(fun(x)))
        for wrap in (lambda f: f, jax.jit):
            assert_close(wrap(hessian)(normal(3)), jnp.diag(-jnp.sin(normal(3))))


@pytest.mark.slow
def test_while_with_constants_in_the_condition_and_the_body():
    def fun(x, bound):
        unfinished = lambda s: jnp.sum(s[0] ** 2) < bound**2
        grow = lambda s: (s[0] * (1 + x**2) + bound, s[1] * jnp.sin(x), s[2] + s[1])
        return lax.while_loop(unfinished, grow, (x, bound * x, jnp.zeros(2)))

    assert_agrees_with_nested_jvp(fun, 0.3 * normal(2), jnp.array(2.5))


@pytest.mark.slow
def test_while_whose_carry_begins_to_vary_one_turn_at_a_time():
    def fun(x):
        turn = lambda s: (s[0] + 1, x * jnp.sin(x), s[1] * x, s[2] + s[1])
        zeros = jnp.zeros(2)
        return lax.while_loop(lambda s: s[0] < 4, turn, (0, zeros, zeros, zeros))[1:]

    assert_agrees_with_nested_jvp(fun, normal(2))


@pytest.mark.slow
def test_checkpoint_of_a_scan_with_names_and_a_policy():
    from jax.ad_checkpoint import checkpoint_name

    policy = jax.checkpoint_policies.save_only_these_names("kept")

    def fun(x):
        @functools.partial(jax.checkpoint, policy=policy)
        def step(carry, y):
            carry = checkpoint_name(jnp.sin(carry * y), "kept")
            return carry, jnp.cos(carry)

        return lax.scan(step, x[0], x)

    assert_agrees_with_nested_jvp(fun, normal(4))
    assert_agrees_with_nested_jvp(jax.grad(lambda x: jnp.sum(fun(x)[1])), normal(4))


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("reverse", "unroll"),
    [
        *[(True, 1), (False, 3), (True, True)],
        *[slow(False, 1), slow(True, 3), slow(False, True)],
    ],
)
def test_scan_of_any_direction_and_unrolling(reverse, unroll):
    def fun(x, w):
        step = lambda c, y: (jnp.sin(c) * w + y, (c * y, w))
        return lax.scan(step, w, x, reverse=reverse, unroll=unroll)

    assert_agrees_with_nested_jvp(fun, normal(4), jnp.array(0.3))


def test_while_whose_predicate_vmap_has_batched():
    def fun(x):
        square = lambda a: lax.while_loop(
            lambda c: jnp.sum(c) < 10, lambda c: c * c + a, jnp.stack([a, 1.0])
        )
        return jax.vmap(square)(x)

    assert_agrees_with_nested_jvp(fun, jnp.array([1.5, 3.0, 20.0]))


@pytest.mark.slow
def test_scan_over_keys():
    def fun(x):
        step = lambda c, key: (c * jax.random.normal(key, ()) + jnp.sin(c), None)
        return lax.scan(step, x, jax.random.split(jax.random.key(0), 3))[0]

    assert_agrees_with_nested_jvp(fun, jnp.array(0.3))


def test_tracing_does_not_grow_exponentially_with_nesting(monkeypatch):
    applied = []
    original = interpreter.apply_rule
    monkeypatch.setattr(
        interpreter,
        "apply_rule",
        lambda *args: applied.append(args) or original(*args),
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
