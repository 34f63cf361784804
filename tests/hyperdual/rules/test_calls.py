"""Calls, and the custom rules that users attach to them."""

import functools
import warnings

import jax
import jax.experimental.custom_partitioning as custom_partitioning
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fomoh_jax
from fomoh_jax._hyperdual.pair_forms import Diagonal, Pairs
from fomoh_jax._hyperdual.rules import custom_jvp
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    assert_hyper_jvp_agrees,
    jitted,
    normal,
    second_jvp,
)


@jax.custom_vjp
def only_backward(x):
    return jnp.sin(x) * x


only_backward.defvjp(lambda x: (only_backward(x), x), lambda x, g: (g * 0,))


@pytest.mark.slow
def test_custom_vjp_is_seen_through_where_jvp_raises():
    x, v = normal(3), normal(3, seed=1)
    fun = lambda x: jnp.sum(only_backward(x) ** 2)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(fun, (x,), (v,))
    expected = jax.hessian(lambda x: jnp.sum((jnp.sin(x) * x) ** 2))(x)
    assert_close(fomoh_jax.hessian(fun)(x), expected)
    assert_close(jax.jit(fomoh_jax.hessian(fun))(x), expected)


@pytest.mark.slow
def test_custom_vjp_with_nondiff_arguments_and_integer_residuals():
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def power(n, x):
        return x**n

    power.defvjp(lambda n, x: (x**n, (x, jnp.arange(3))), lambda n, r, g: (g * r[0],))
    x = normal(3)
    fun = lambda x: jnp.sum(jax.jit(power, static_argnums=0)(3, x))
    assert_close(fomoh_jax.hessian(fun)(x), jnp.diag(6 * x))


@jax.custom_jvp
def unusual(x):
    return jnp.sin(x)


unusual.defjvp(
    lambda primals, tangents: (unusual(*primals), primals[0] ** 3 * tangents[0])
)


@pytest.mark.slow
def test_an_unusual_custom_jvp_is_honoured_to_second_order():
    x = normal(3)
    assert_agrees_with_nested_jvp(lambda x: unusual(jnp.tanh(x)) * x, x)
    # unusual' is x³ by decree, so unusual'' is 3x².
    _, slope, curvature = fomoh_jax.directional_curvature(
        unusual, (x,), (jnp.ones((1, 3)),)
    )
    assert_close(slope[0], x**3)
    assert_close(curvature[0], 3 * x**2)


@pytest.mark.slow
def test_a_custom_jvp_that_mixes_elements_is_not_taken_for_elementwise():
    @jax.custom_jvp
    def looks_elementwise(x):
        return jnp.sin(x)

    @looks_elementwise.defjvp
    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        return looks_elementwise(x), jnp.sum(jnp.cos(x) * t) * jnp.ones_like(x)

    # v1ᵀ ∂(rule) v2 is symmetric here: Σ -sin(x) t1 t2.
    assert_agrees_with_nested_jvp(lambda x: looks_elementwise(x) * x, normal(4))


@pytest.mark.slow
def test_custom_jvp_with_several_operands_and_nondiff_argnums():
    @functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
    def product(x, y, n):
        return x * y**n

    @product.defjvp
    def rule(n, primals, tangents):
        (x, y), (tx, ty) = primals, tangents
        return product(x, y, n), tx * y**n + ty * x * n * y ** (n - 1)

    fun = lambda x, y: product(jnp.tanh(x), y, 3) + product(x, 2.0, 2)
    assert_agrees_with_nested_jvp(fun, normal(3), normal(3, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("varied", [0, 1])
def test_a_custom_jvp_that_is_the_derivative_of_nothing(varied):
    @jax.custom_jvp
    def product(x, y):
        return x * y

    @product.defjvp
    def rule(primals, tangents):  # as if the other operand were constant
        return product(*primals), tangents[varied] * primals[1 - varied] ** 2

    x, y, v, w = (normal(2, seed=seed) for seed in range(4))
    actual = jitted(fomoh_jax.hyper_jvp)(product, (x, y), (v, w), (w, v))
    assert_close(actual, second_jvp(product, (x, y), (v, w), (w, v)))


@pytest.mark.slow
def test_custom_jvp_with_symbolic_zeros():
    @jax.custom_jvp
    def fun(x, y):
        return jnp.sin(x) * y

    def rule(primals, tangents):
        (x, y), (tx, ty) = primals, tangents
        out = 0.0
        if not isinstance(tx, jax.custom_derivatives.SymbolicZero):
            out += jnp.cos(x) * y * tx
        if not isinstance(ty, jax.custom_derivatives.SymbolicZero):
            out += jnp.sin(x) * ty
        return fun(x, y), out

    fun.defjvp(rule, symbolic_zeros=True)
    assert_agrees_with_nested_jvp(lambda x: fun(x**2, 2.0) + fun(x, x), normal(3))


def honest_and_opaque(function):
    """A function, and the same one as a custom_vjp with a backward rule of nonsense."""
    opaque = jax.custom_vjp(function)
    opaque.defvjp(lambda *xs: (function(*xs), xs), lambda xs, g: (g * 0,) * len(xs))
    return function, opaque


@pytest.mark.slow
def test_a_custom_vjp_inside_a_custom_jvp_rule_is_seen_through():
    def with_slope(slope):
        @jax.custom_jvp
        def fun(x, y):
            return jnp.sin(x) * y

        @fun.defjvp
        def rule(primals, tangents):
            (x, y), (tx, ty) = primals, tangents
            return fun(x, y), slope(x, y) * tx + jnp.sin(x) * ty

        return fun

    honest, opaque = honest_and_opaque(lambda x, y: jnp.cos(x) * y)
    primals, v, w = ((normal(3, seed=i), normal(3, seed=i + 1)) for i in (0, 2, 4))
    expected = second_jvp(with_slope(honest), primals, v, w)
    ours = jitted(fomoh_jax.hyper_jvp)(with_slope(opaque), primals, v, w)
    assert_close(ours, expected)
    mixing = lambda slope: lambda x: with_slope(slope)(x, jnp.cumsum(x))[::-1]
    ours = jax.jit(fomoh_jax.hessian(mixing(opaque)))(normal(3))
    assert_close(ours, jax.jit(jax.hessian(mixing(honest)))(normal(3)))


def test_a_custom_vjp_inside_a_custom_jvp_rule_that_is_not_elementwise():
    def with_slope(slope):
        @jax.custom_jvp
        def fun(x):
            return jnp.cumsum(jnp.sin(x))

        @fun.defjvp
        def rule(primals, tangents):
            return fun(*primals), jnp.cumsum(slope(*primals) * tangents[0])

        return fun

    honest, opaque = honest_and_opaque(jnp.cos)
    ours = jax.jit(fomoh_jax.hessian(with_slope(opaque)))(normal(3))
    expected = jax.jit(jax.jacfwd(jax.jacfwd(with_slope(honest))))(normal(3))
    assert_close(ours, expected)


def test_custom_vjps_nested_in_each_other_and_in_loops():
    honest, opaque = honest_and_opaque(lambda x: jnp.sin(x) * x)
    outer_honest = lambda x: honest(honest(x) + x)
    _, outer_opaque = honest_and_opaque(lambda x: opaque(opaque(x) + x))

    def looped(function):
        step = lambda c, y: (function(c) * y, function(y))
        return lambda x: jnp.sum(lax.scan(step, x[0], x)[1]) + function(x[1])

    x = normal(3)
    expected = jax.jit(jax.hessian(looped(outer_honest)))(x)
    assert_close(jax.jit(fomoh_jax.hessian(looped(outer_opaque)))(x), expected)


@pytest.mark.slow
def test_a_custom_jvp_that_closes_over_traced_values():
    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(jvp, scale, x):
        @jax.custom_jvp
        def fun(x):
            return jnp.sin(x) * scale

        fun.defjvp(lambda p, t: (fun(*p), scale * p[0] ** 3 * t[0]))
        return jvp(lambda x: fun(x * scale), (x,), (x,), (x**2,))

    ours, theirs = (
        derivatives(jvp, 2.0, normal(3)) for jvp in (fomoh_jax.hyper_jvp, second_jvp)
    )
    assert_close(ours, theirs)


@pytest.mark.slow
def test_elementwise_custom_rules_are_not_left_to_the_generic_rule(monkeypatch):
    left = []
    generic = custom_jvp.generic
    monkeypatch.setattr(
        custom_jvp, "generic", lambda *args: left.append(args) or generic(*args)
    )
    nn, special = jax.nn, jax.scipy.special
    of_one = (nn.relu, nn.gelu, nn.silu, nn.softplus, nn.log_sigmoid, nn.elu)
    of_two = (jnp.logaddexp, jnp.hypot, special.xlogy, special.xlog1py)
    within_one = (nn.logsumexp, lambda x: jnp.sinc(x), special.ndtri)
    assert_hyper_jvp_agrees(
        lambda x: (
            [function(x) * x for function in of_one],
            [function(x**2, 1 + x**2) for function in of_two],
            [function(nn.sigmoid(x)) for function in within_one],
        ),
        normal(3),
    )
    assert not left


@pytest.mark.slow
@pytest.mark.optimised
def test_logaddexp_costs_no_more_than_its_family():
    def flops(function):
        x, v = jnp.ones((64, 64)), jnp.ones((4, 64, 64))
        model = lambda x, v: fomoh_jax.quadratic_model(
            lambda x: function(x, 2 * x), (x,), (v,)
        )
        return jax.jit(model).lower(x, v).compile().cost_analysis()["flops"]

    # Two operands, so three products with a second derivative for each of ten pairs.
    assert flops(jnp.logaddexp) <= 1.3 * flops(jnp.arctan2)


def test_a_custom_rule_that_narrows_the_dtype_rounds_its_tangents():
    @jax.custom_jvp
    def narrow(x):
        return x.astype(jnp.bfloat16)

    narrow.defjvp(lambda p, t: (narrow(*p), t[0].astype(jnp.bfloat16)))
    wide = lambda x: (narrow(x) * narrow(x)).astype("float64") * x
    x, v, w = normal(3), normal(3, seed=1), normal(3, seed=2)
    for fun in (narrow, wide):
        ours = jitted(fomoh_jax.hyper_jvp)(fun, (x,), (v,), (w,))
        theirs = second_jvp(fun, (x,), (v,), (w,))
        assert [a.dtype for a in ours] == [a.dtype for a in theirs]
        for a, e in zip(ours, theirs):
            assert np.allclose(np.asarray(a, float), np.asarray(e, float), 0.02, 0.02)
    carry = jnp.ones((), jnp.bfloat16)
    looped = lambda x: lax.scan(lambda c, y: (narrow(y) * c, None), carry, x)[0]
    assert jax.eval_shape(fomoh_jax.hessian(looped), x).shape == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("itself", [True, False])
def test_the_word_of_a_straight_through_estimator_is_kept(itself):
    @jax.custom_jvp
    def rounded(x):
        return jnp.round(x)

    rounded.defjvp(lambda p, t: ((rounded if itself else jnp.round)(*p), t[0]))
    x = normal(3)
    # Of Σ r², with r' = 1 by decree, also where the rule does not call itself, so that
    # nested jvp would take one of the two slopes from jnp.round.
    hessian = fomoh_jax.hessian(lambda x: jnp.sum(rounded(3 * x) ** 2))(x)
    assert_close(hessian, 18 * jnp.eye(3))


def test_a_callback_inside_a_custom_rule_that_is_not_elementwise_runs_once():
    seen = []

    @jax.custom_jvp
    def fun(x):
        jax.debug.callback(lambda x: seen.append(float(x)), jnp.sum(x))
        return jnp.cumsum(x) ** 2

    fun.defjvp(lambda p, t: (fun(*p), 2 * jnp.cumsum(p[0]) * jnp.cumsum(t[0])))
    hessian = fomoh_jax.hessian(lambda x: jnp.sum(fun(x)))(jnp.ones(3))
    jax.effects_barrier()
    assert seen == [3.0]
    assert_close(hessian, jnp.array([[6.0, 4, 2], [4, 4, 2], [2, 2, 2]]))


def test_a_callback_inside_an_elementwise_custom_rule_runs_once():
    seen = []

    @jax.custom_jvp
    def fun(x):
        jax.debug.callback(seen.append, x)
        return jnp.sin(x)

    fun.defjvp(lambda p, t: (fun(*p), jnp.cos(p[0]) * t[0]))
    fomoh_jax.hessian(fun)(0.5)
    jax.effects_barrier()
    assert seen == [0.5]


@pytest.mark.slow
def test_composites_and_custom_partitioning_are_seen_through():
    plain = lambda x: jnp.sin(x) * x
    composite = lax.composite(lambda x: plain(x), name="my.op")
    partitioned = custom_partitioning.custom_partitioning(lambda x: plain(x))
    partitioned.def_partition(
        partition=lambda mesh, args, result: None,
        infer_sharding_from_operands=lambda mesh, args, result: None,
        sharding_rule="i -> i",
    )
    expected = jax.jacfwd(jax.jacfwd(plain))(normal(3))
    for fun in (composite, partitioned):  # of neither does JAX know a derivative
        assert_close(fomoh_jax.hessian(lambda x: fun(x))(normal(3)), expected)


def test_ragged_dot_which_jax_cannot_batch():
    def fun(a, b):
        return lax.ragged_dot(jnp.sin(a), b, jnp.array([2, 1], jnp.int32))

    primals, v, w = ((normal(3, 4, seed=i), normal(2, 4, 2, seed=i)) for i in (0, 2, 4))
    expected = second_jvp(fun, primals, v, w)
    assert_close(jitted(fomoh_jax.hyper_jvp)(fun, primals, v, w), expected)
    both = jax.tree.map(lambda a, b: np.stack([a, b]), v, w)
    model = jitted(fomoh_jax.quadratic_model)(fun, primals, both)
    assert_close(model.curvature[0, 1], expected[3])


@pytest.mark.optimised
def test_relu_costs_one_product_per_channel():
    def flops(activation):
        x, v = jnp.ones((64, 64)), jnp.ones((4, 64, 64))
        model = lambda x, v: fomoh_jax.quadratic_model(
            lambda x: activation(x), (x,), (v,)
        )
        return jax.jit(model).lower(x, v).compile().cost_analysis()["flops"]

    # Four tangents, and the comparison, the selection and the maximum that relu is. Its
    # ten seconds are known to be zero.
    assert flops(jax.nn.relu) <= 7 * 64 * 64
    assert flops(jnp.tanh) > 14 * 64 * 64


def test_a_function_jitted_inside_is_interpreted_once():
    count = 0

    @jax.jit
    def layer(x):
        nonlocal count
        count += 1
        return jnp.tanh(x)

    def deep(x):
        for _ in range(10):
            x = layer(x)
        return x

    jaxpr = jax.make_jaxpr(
        lambda x: fomoh_jax.quadratic_model(deep, (x,), (jnp.eye(3),))
    )(jnp.ones(3))
    names = [
        eqn.params["name"]
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "jit" and "hyperdual" in eqn.params["name"]
    ]
    bodies = {
        id(eqn.params["jaxpr"])
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "jit" and "hyperdual" in eqn.params["name"]
    }
    assert count == 1
    assert len(names) == 10
    assert len(bodies) <= 2  # the first layer's input has no seconds yet


def test_trees_of_different_forms_differ():
    # Equal trees would let jit hand one form the program of another.
    structures = [jax.tree.structure(form) for form in (Pairs(3), Diagonal(3))]
    assert structures[0] != structures[1]
    assert Pairs(3) == Pairs(3) and hash(Pairs(3)) == hash(Pairs(3))


def test_checkpoint_with_a_policy():
    policy = jax.checkpoint_policies.dots_saveable
    fun = jax.checkpoint(lambda x: jnp.sin(x @ x), policy=policy)
    x = normal(2, 2)
    assert_agrees_with_nested_jvp(fun, x)
    curvature = lambda x: fomoh_jax.hessian(lambda x: jnp.sum(fun(x)))(x).sum()
    expected = lambda x: jax.hessian(lambda x: jnp.sum(jnp.sin(x @ x)))(x).sum()
    assert_close(jax.jit(jax.grad(curvature))(x), jax.jit(jax.grad(expected))(x))


def test_debug_callbacks_run_once_on_primals(capfd):
    def fun(x):
        jax.debug.print("x = {}", x)
        return x**2

    fomoh_jax.hyper_jvp(fun, (2.0,), (1.0,), (1.0,))
    jax.effects_barrier()
    assert capfd.readouterr().out == "x = 2.0\n"


def test_names_and_source_lines_survive():
    def fun(x):
        with jax.named_scope("my_layer"):
            return jnp.tanh(x)

    text = (
        jax.jit(lambda x: fomoh_jax.hyper_jvp(fun, (x,), (x,), (x,)))
        .lower(jnp.ones(3))
        .as_text(debug_info=True)
    )
    assert "my_layer" in text
    assert "test_calls.py" in text


@pytest.mark.slow
def test_a_custom_jvp_that_scans_over_scalars_is_not_taken_for_elementwise():
    @jax.custom_jvp
    def cumulative(x):
        return lax.scan(lambda c, a: (c + a**2,) * 2, 0.0, x)[1]

    @cumulative.defjvp
    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        step = lambda c, a: (c + 2 * a[0] * a[1],) * 2
        return cumulative(x), lax.scan(step, 0.0, (x, t))[1]

    assert_agrees_with_nested_jvp(lambda x: cumulative(x) * x, normal(4))


def test_custom_vmap_is_seen_through():
    @jax.custom_batching.custom_vmap
    def square(x):
        return x**2

    @square.def_vmap
    def rule(axis_size, in_batched, x):
        return x**2, in_batched[0]

    assert_agrees_with_nested_jvp(lambda x: square(jnp.sin(x)), normal(3))


def test_a_custom_vjp_whose_function_has_no_derivative_says_so_with_its_line():
    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    fun = lambda x: jnp.sum(straight_through(x) * x)
    with pytest.warns(UserWarning, match=r"test_calls\.py.*jax\.custom_jvp") as seen:
        hessian = jax.jit(fomoh_jax.hessian(fun))
        hessian(normal(3))
        hessian(normal(3))  # said when it is traced
    assert len(seen) == 1
    tx = fomoh_jax.fgd(0.1)
    with pytest.warns(UserWarning, match="straight-through"):
        tx.update(None, tx.init(normal(3)), normal(3), value_fn=fun)


def test_a_custom_vjp_that_has_a_derivative_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fomoh_jax.hessian(lambda x: jnp.sum(only_backward(x)))(normal(3))
