"""The curvature by one backward pass against nested ``jvp``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import fomoh_jax
from fomoh_jax import plans
from tests.hyperdual.rules.test_random_programs import SHAPES, programs, run
from tests.programs import PROGRAMS, cnn, cnn_arguments, mlp, rosenbrock
from tests.reference import (
    assert_close,
    assert_symmetric,
    jitted,
    nested_model,
    normal,
    random_directions,
    slow,
)


def adjoint_model(fun, primals, directions):
    return fomoh_jax.quadratic_model(fun, primals, directions, plan=plans.adjoint())


def assert_adjoint_agrees(fun, *primals, k=3):
    directions = random_directions(primals, k)
    model = jitted(adjoint_model)(fun, primals, directions)
    assert_close(model, nested_model(fun, primals, directions))
    assert_symmetric(model.curvature)


# What other programs have as well, or what takes long to compile.
SLOW = ("attention", "softmax_cross_entropy", "cond_false", "scan")
# Reverse mode takes no while loop.
LOOPS = [name for name in PROGRAMS if "while" in name or "root" in name]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name", [slow(n) if n in SLOW else n for n in PROGRAMS if n not in LOOPS]
)
def test_agrees_with_nested_jvp(name):
    fun, primals = PROGRAMS[name]
    assert_adjoint_agrees(fun, *primals)


@pytest.mark.slow
def test_agrees_with_nested_jvp_on_the_cnn():
    params, images, labels = cnn_arguments()
    assert_adjoint_agrees(lambda params: cnn(params, images, labels), params)


@pytest.mark.slow
def test_hessian_by_adjoint_is_the_hessian():
    fun, primals = mlp(jnp.tanh)
    hessian = jax.jit(fomoh_jax.hessian(fun, (0, 1), plan=plans.adjoint()))(*primals)
    assert_close(hessian, jax.jit(jax.hessian(fun, (0, 1)))(*primals))


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(programs().filter(lambda p: "while" not in str(p)), st.integers(0, 100))
def test_random_programs_agree(program, seed):
    primals = tuple(
        0.5 * normal(*shape, seed=seed + i) for i, shape in enumerate(SHAPES)
    )
    fun = lambda *xs: run(program, *xs)
    directions = random_directions(primals, 2)
    model = jitted(adjoint_model)(fun, primals, directions)
    assert_close(model, nested_model(fun, primals, directions))


@pytest.mark.slow
def test_layers_inside_and_around_a_scan():
    def fun(ws, x):
        x = jnp.tanh(x @ ws[0]) * jnp.sum(ws[1])
        x = lax.scan(lambda x, w: (jnp.sin(x @ w), jnp.sum(x**2)), x, ws)[0]
        return jnp.sum(jnp.exp(x @ ws[1]))

    assert_adjoint_agrees(fun, 0.3 * normal(3, 4, 4), normal(2, 4))


@pytest.mark.slow
def test_a_branch_between_layers():
    def fun(w, x):
        x = jnp.sin(x @ w)
        x = lax.cond(x[0, 0] > 0, lambda x: x**3 @ w, lambda x: jnp.cos(x) @ w, x)
        return jnp.sum(x**2)

    assert_adjoint_agrees(fun, normal(3, 3), normal(2, 3))


def test_jitted_and_checkpointed_layers():
    def fun(w, x):
        layer = lambda x: jnp.tanh(x @ w) * x
        return jnp.mean(jax.jit(layer)(jax.checkpoint(layer)(jax.jit(layer)(x))))

    assert_adjoint_agrees(fun, normal(3, 3), normal(2, 3))


def test_vector_and_several_outputs():
    def fun(w, x):
        y = jnp.tanh(x @ w)
        return {"sum": jnp.sum(y**2), "rows": jnp.sum(y**3, axis=1), "fixed": x * 2}

    assert_adjoint_agrees(fun, normal(3, 3), normal(2, 3))


def test_complex_results_of_real_arguments():
    def fun(x):
        return lax.complex(x[0] ** 2, x[1] ** 3) * jnp.exp(1j * x[2]), jnp.fft.fft(x**2)

    vectors = normal(2, 3)
    expected = jitted(fomoh_jax.quadratic_model)(fun, (normal(3),), (vectors,))
    assert_close(jitted(adjoint_model)(fun, (normal(3),), (vectors,)), expected)


def test_an_empty_result():
    model = fomoh_jax.quadratic_model(
        lambda x: x[:0] ** 2, (normal(3),), (normal(2, 3),), plan=plans.adjoint()
    )
    assert model.curvature.shape == (2, 2, 0)


def test_integer_and_constant_outputs():
    fun = lambda x: (jnp.sum(x), jnp.argmax(x), jnp.ones(2))
    model = adjoint_model(fun, (normal(3),), (jnp.eye(3),))
    sums, index, ones = model.curvature
    assert not sums.any() and sums.shape == (3, 3)
    assert index.dtype == jax.dtypes.float0 and index.shape == (3, 3)
    assert not ones.any() and ones.shape == (3, 3, 2)


@pytest.mark.slow
def test_aux_and_no_directions():
    fun = lambda x: (jnp.sum(x**3), {"mean": jnp.mean(x)})
    x = normal(3)
    model, aux = fomoh_jax.quadratic_model(
        fun, (x,), (jnp.eye(3),), plan=plans.adjoint(), has_aux=True
    )
    assert_close(model.curvature, jnp.diag(6 * x))
    assert_close(aux, {"mean": jnp.mean(x)})
    empty = adjoint_model(lambda x: fun(x)[0], (x,), (jnp.zeros((0, 3)),))
    assert empty.curvature.shape == (0, 0)


def adjoint_model_and_aux(fun, x):
    directions = jnp.eye(len(x))
    return fomoh_jax.quadratic_model(
        fun, (x,), (directions,), plan=plans.adjoint(), has_aux=True
    )


@pytest.mark.slow
def test_nothing_is_swept_back_for_aux():
    def fun(x):
        return jnp.sum(x**3), {"many": jnp.sin(jnp.outer(x, jnp.ones(500))).ravel()}

    x = normal(2)
    model, aux = adjoint_model_and_aux(fun, x)
    assert_close(model.curvature, jnp.diag(6 * x))
    assert_close(aux, fun(x)[1])
    assert aux["many"].shape == (1000,)
    jaxpr = jax.make_jaxpr(lambda x: adjoint_model_and_aux(fun, x))(x)
    assert "1000,1000" not in str(jaxpr)


def test_aux_may_come_from_a_while_loop():
    def fun(x):
        root = lax.while_loop(lambda y: y[0] > 1, lambda y: y**2 / 2, x)
        return jnp.sum(x**3), root

    x = jnp.array([1.5, 2.0])
    model, root = adjoint_model_and_aux(fun, x)
    assert_close(model.curvature, jnp.diag(6 * x))
    assert_close(root, fun(x)[1])


def test_what_is_no_pair_is_refused_before_it_is_swept_back_over():
    def fun(x):
        return lax.while_loop(lambda y: y < 1, lambda y: y**2 + x, x)

    with pytest.raises(TypeError, match=r"pair \(out, aux\); got PyTreeDef\(\*\)"):
        fomoh_jax.quadratic_model(
            fun, (2.0,), (jnp.ones(1),), plan=plans.adjoint(), has_aux=True
        )


@pytest.mark.slow
def test_under_vmap_and_grad():
    def curvature(x, v):
        fun = lambda x: jnp.sum(jnp.sin(x) * x[0])
        return adjoint_model(fun, (x,), (v,)).curvature

    def nested(x, v):
        fun = lambda x: jnp.sum(jnp.sin(x) * x[0])
        return nested_model(fun, (x,), (v,))[2]

    xs, v = normal(4, 3), normal(2, 3)
    batched = lambda f: jax.jit(jax.vmap(f, (0, None)))(xs, v)
    assert_close(batched(curvature), batched(nested))
    slope = lambda f: jax.jit(jax.grad(lambda x: jnp.sum(f(x, v))))(xs[0])
    assert_close(slope(curvature), slope(nested))


def test_a_custom_vjp_is_seen_through():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    x = normal(3)
    hessian = fomoh_jax.hessian(lambda x: jnp.sum(cube(x)), plan=plans.adjoint())(x)
    assert_close(hessian, jnp.diag(6 * x))


def test_a_while_loop_cannot_be_swept_back_over():
    def loop(x):
        step = lambda state: (state[0] + 1, jnp.sin(state[1]) * x)
        return jnp.sum(lax.while_loop(lambda s: s[0] < 3, step, (0, x**2))[1])

    with pytest.raises(ValueError, match="while_loop"):
        fomoh_jax.hessian(loop, plan=plans.adjoint())(normal(2))


def test_a_mutable_array():
    def mutable(x):
        ref = jax.new_ref(x**2)
        ref[...] = ref[...] * x
        return jnp.sum(jax.freeze(ref))

    x = normal(3)
    hessian = jax.jit(fomoh_jax.hessian(mutable, plan=plans.adjoint()))(x)
    assert_close(hessian, jnp.diag(6 * x))


@pytest.mark.slow
@pytest.mark.optimised
def test_operations_grow_with_k_and_not_with_its_square():
    ws, x = [normal(64, 64, seed=i) for i in range(4)], normal(64, 64)

    def loss(ws):
        y = x
        for w in ws:
            y = jnp.tanh(y @ w)
        return jnp.mean(y**2)

    def operations(k, model):
        directions = random_directions((ws,), k)
        compiled = jax.jit(lambda d: model(loss, (ws,), d)).lower(directions).compile()
        return compiled.cost_analysis()["flops"]

    assert operations(20, adjoint_model) <= 2.3 * operations(10, adjoint_model)
    assert operations(20, adjoint_model) <= 0.15 * operations(20, nested_model)


NOT_TAKEN = {
    "a branch of a vmapped cond": lambda x: jnp.sum(
        jax.vmap(lambda a: lax.cond(a > 0, jnp.sqrt, jnp.square, a))(x)
    ),
    "a where around one": lambda x: jnp.sum(
        jnp.where(x > 0, jnp.sin(jnp.sqrt(jnp.where(x > 0, x, 0))), x**2)
    ),
    "a product in it": lambda x: jnp.sum(
        jax.vmap(
            lambda a: lax.cond(a > 0, lambda a: jnp.log(a) * a, lambda a: a**3, a)
        )(x)
    ),
    "a matrix product in it": lambda x: jnp.sum(
        jax.vmap(
            lambda a: lax.cond(
                a > 0, lambda a: jnp.sqrt(a * jnp.ones(2)) @ normal(2), jnp.sin, a
            )
        )(x)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_is_not_taken_makes_nothing_infinite(name):
    fun, x = NOT_TAKEN[name], jnp.array([0.0, 1.0])
    expected = jax.jit(jax.jacfwd(jax.jacfwd(fun)))(x)
    for plan in ("auto", plans.adjoint()):
        assert_close(jax.jit(fomoh_jax.hessian(fun, plan=plan))(x), expected)


@pytest.mark.parametrize(
    "fun",
    [
        lambda x: jnp.linalg.norm(x) ** 2,
        lambda x: jnp.exp(-(jnp.linalg.norm(x) ** 2)),
        lambda x: jnp.sum(jnp.where(x < 1, jnp.sqrt(x * x) ** 2, x)),
    ],
)
def test_what_the_forward_pass_does_not_know_is_not_made_up(fun):
    for plan in ("auto", plans.adjoint()):
        hessian = jax.jit(fomoh_jax.hessian(fun, plan=plan))(jnp.zeros(2))
        assert np.all(np.isnan(np.diagonal(hessian)))


@pytest.mark.slow
def test_what_is_infinite_stays_so():
    fun = lambda x: jnp.sqrt(x[0]) + x[1] ** 2
    for plan in ("auto", plans.adjoint()):
        hessian = fomoh_jax.hessian(fun, plan=plan)(jnp.array([0.0, 1.0]))
        np.testing.assert_array_equal(hessian[0, 0], -jnp.inf)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["auto", plans.adjoint()], ids=["auto", "adjoint"])
def test_third_derivatives_where_a_tangent_is_zero(plan):
    fun = lambda x: jnp.sum(jnp.exp(jnp.sin(x**2)))
    third = jax.jacfwd(fomoh_jax.hessian(fun, plan=plan))
    x = jnp.array([0.0, 0.7])
    assert_close(jax.jit(third)(x), jax.jit(jax.jacfwd(jax.hessian(fun)))(x))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["auto", plans.adjoint()], ids=["auto", "adjoint"])
def test_derivatives_at_a_minimum_where_every_cotangent_is_zero(plan):
    fun = lambda x: jnp.sqrt(1 + rosenbrock(x))
    hessian, x = fomoh_jax.hessian(fun, plan=plan), jnp.ones(3)
    assert_close(jax.jit(hessian)(x), jax.jit(jax.hessian(fun))(x))
    third = jax.jit(jax.jacfwd(hessian))(x)
    assert_close(third, jax.jit(jax.jacfwd(jax.hessian(fun)))(x))


def test_a_while_loop_is_refused_with_its_line():
    def fun(x):
        unfinished = lambda x: jnp.sum(x) < 9
        return jnp.sum(lax.while_loop(unfinished, lambda x: x**2 + 1, x))

    with pytest.raises(ValueError, match=r"test_adjoint\.py.*plans.forward"):
        jax.jit(fomoh_jax.hessian(fun, plan=plans.adjoint()))(normal(2))


@pytest.mark.parametrize("plan", ["auto", plans.adjoint()], ids=["auto", "adjoint"])
def test_derivatives_by_a_last_layer_of_zeros(plan):
    inner, x = normal(4, 3), normal(3, seed=9)
    slopes = lambda hessian: jax.grad(
        lambda w: jnp.sum(
            jnp.sin(1 + hessian(lambda x: jnp.sum(w * jnp.exp(inner @ x)[1:]))(x))
        )
    )
    ours = slopes(lambda f: fomoh_jax.hessian(f, plan=plan))
    w = jnp.zeros(3)
    assert_close(jax.jit(ours)(w), jax.jit(slopes(jax.hessian))(w))
