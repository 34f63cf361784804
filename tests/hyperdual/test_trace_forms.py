"""The trace form, and the transformations that stand on it, against ``jax.hessian``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.flatten_util import ravel_pytree

import fomoh_jax
from fomoh_jax._hyperdual.channels import ZERO, Stack
from fomoh_jax._hyperdual.sums import sum_of_products, total
from fomoh_jax._hyperdual.trace_forms import DiagonalTrace, Trace, WeightedTrace
from tests.hyperdual.rules.test_random_programs import SHAPES, programs, run
from tests.programs import PROGRAMS, cnn, cnn_arguments, mlp, newton_root, rosenbrock
from tests.reference import assert_close, normal, partly_slow, slow

# --- references ---------------------------------------------------------------------


def flat_hessian(fun, primals):
    """For each output, ``[*out, D, D]`` over the elements of all the primals."""
    flat, unravel = ravel_pytree(tuple(primals))
    return jax.jit(jax.jacfwd(jax.jacfwd(lambda x: fun(*unravel(x)))))(flat)


@functools.cache
def hessian_of(name):
    return flat_hessian(*PROGRAMS[name])


def trace_of(hessian, weights=None):
    def one(h):
        w = np.eye(len(h.T)) if weights is None else weights
        return jnp.einsum("ij,...ji->...", w, h)

    return jax.jit(lambda hessian: jax.tree.map(one, hessian))(hessian)


def trace(fun, primals, weights=None):
    return trace_of(flat_hessian(fun, primals), weights)


def diagonal_of(hessian, primals):
    """For each output, a tuple of trees like the primals."""
    _, unravel = ravel_pytree(tuple(primals))

    def pieces(h):
        d = jnp.diagonal(h, axis1=-2, axis2=-1)
        rows = d.reshape(-1, d.shape[-1])
        tree = jax.vmap(unravel)(rows)
        return jax.tree.map(lambda x: x.reshape(*d.shape[:-1], *x.shape[1:]), tree)

    return jax.jit(lambda hessian: jax.tree.map(pieces, hessian))(hessian)


def all_of(primals):
    return tuple(range(len(primals)))


def weights_for(primals, seed=3):
    size = len(ravel_pytree(primals)[0])
    return normal(size, size, seed=seed)


# --- the form -----------------------------------------------------------------------

WEIGHTS = normal(3, 3, seed=9)
SYMMETRIC = (WEIGHTS + WEIGHTS.T) / 2
SIGNED = jnp.array([2.0, 0.0, -0.5])
FORMS = {
    "trace": (Trace(3), np.eye(3)),
    "diagonal": (DiagonalTrace(SIGNED), np.diag(SIGNED)),
    "weighted": (WeightedTrace(SYMMETRIC), None),
}


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_products_are_weighted_sums_over_the_pairs(name, axis):
    form, weights = FORMS[name]
    weights = SYMMETRIC if weights is None else weights
    a, b = normal(3, 2, 2), normal(3, 2, 2, seed=1)
    x, y = Stack(a).moved(axis), Stack(b).moved(1)
    a, b = np.asarray(a), np.asarray(b)
    read = lambda stack: stack.moved(0).array
    inner = lambda a, b: np.einsum("ij,i...,j...->...", weights, a, b)[None]
    matmul = np.einsum("ij,iab,jbc->ac", weights, a, b)[None]
    assert (form.k, form.q) == (3, 1)
    assert_close(read(form.product(x, x)), inner(a, a))
    assert_close(read(form.product(x, y)), inner(a, b))
    assert_close(read(form.cross(x, y)), 2 * inner(a, b))
    assert_close(read(form.cross(x, x)), 2 * inner(a, a))
    assert_close(read(form.bilinear(jnp.matmul, x, y, axis)), 2 * matmul)
    function = lambda u, w, u2, w2: [u @ w2 + u2 @ w]
    (quadratic,) = form.quadratic(function, [x, y], [axis])
    assert_close(read(quadratic), 2 * matmul)


@pytest.mark.parametrize("name", FORMS)
def test_a_product_with_zero_is_zero_and_not_computed(name):
    form, x = FORMS[name][0], Stack(normal(3, 2))
    assert form.product(x, ZERO).is_zero and form.product(ZERO, x).is_zero
    assert form.cross(x, ZERO).is_zero and form.cross(ZERO, x).is_zero
    assert form.bilinear(jnp.multiply, x, ZERO, 0) is ZERO
    assert form.quadratic(jnp.multiply, [ZERO], [0]) == [ZERO]


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("k", [*range(12), 50, 101])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_of_products_over_any_number_of_directions(k, axis):
    a, b = normal(k, 4), normal(k, 4, seed=1)
    x, y = (jnp.moveaxis(z, 0, axis) for z in (a, b))
    products = np.asarray(a) * np.asarray(b)
    expected = np.expand_dims(products.sum(0), axis)
    assert_close(sum_of_products(x, y, axis), expected)
    assert_close(total(jnp.moveaxis(jnp.asarray(products), 0, axis), axis), expected)


@pytest.mark.slow
@pytest.mark.optimised
def test_half_precision_is_summed_in_single():
    ones = Stack(jnp.ones((1024, 1), "bfloat16"))  # 256 + 1 is 256 in bfloat16
    total = Trace(1024).product(ones, ones)
    assert total.array.dtype == "bfloat16" and total.array[0, 0] == 1024


# --- right --------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", partly_slow(PROGRAMS))
def test_laplacian_agrees_with_the_trace_of_the_hessian(name):
    fun, primals = PROGRAMS[name]
    argnums, weights = all_of(primals), weights_for(primals)

    def ours(*primals):
        laplacian = fomoh_jax.laplacian
        weighted = laplacian(fun, argnums, weights=weights)
        return laplacian(fun, argnums)(*primals), weighted(*primals)

    hessian = hessian_of(name)
    expected = trace_of(hessian), trace_of(hessian, weights)
    assert_close(jax.jit(ours)(*primals), expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", partly_slow(reversed(PROGRAMS)))
def test_hessian_diagonal_agrees_with_the_diagonal_of_the_hessian(name):
    fun, primals = PROGRAMS[name]
    ours = jax.jit(fomoh_jax.hessian_diagonal(fun, all_of(primals)))
    assert_close(ours(*primals), diagonal_of(hessian_of(name), primals))


@pytest.mark.slow
def test_agree_on_the_cnn():
    params, images, labels = cnn_arguments()
    loss = lambda params: cnn(params, images, labels)
    laplacian = jax.jit(fomoh_jax.laplacian(loss))(params)
    expected = diagonal_of(flat_hessian(loss, (params,)), (params,))
    assert_close(jax.jit(fomoh_jax.hessian_diagonal(loss))(params), expected[0])
    assert_close(laplacian, jnp.sum(ravel_pytree(expected)[0]))


@pytest.mark.slow
@settings(max_examples=6)
@given(
    programs(),
    st.permutations(SHAPES),
    st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    st.integers(0, 50),
)
def test_random_compositions_agree_with_jax(steps, shapes, varied, seed):
    inputs = [normal(*shape, seed=100 + seed + i) for i, shape in enumerate(shapes)]
    argnums = tuple(i for i, vary in enumerate(varied) if vary)
    chosen = [inputs[i] for i in argnums]

    def fun(*xs):
        full = list(inputs)
        for i, x in zip(argnums, xs):
            full[i] = x
        return run(steps, *full)

    hessian = flat_hessian(fun, chosen)
    program = lambda *xs: run(steps, *xs)
    for weights in (None, weights_for(chosen)):
        ours = jax.jit(fomoh_jax.laplacian(program, argnums, weights=weights))(*inputs)
        w = np.eye(len(ravel_pytree(chosen)[0])) if weights is None else weights
        for actual, h in zip(ours, hessian):
            expected = jnp.einsum("ij,...ji->...", w, h)
            # The terms of a trace may cancel: it is as exact as they are large.
            size = float(jnp.sum(jnp.abs(w)) * jnp.max(jnp.abs(h), initial=0))
            atol = 1e-12 * (1 + size)
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=atol)


def test_functions_of_several_outputs_and_arguments_nest_as_jax_hessian():
    fun, (params, x) = mlp(jnp.tanh)
    several = lambda p, x: {"loss": fun(p, x), "rows": jnp.sin(x @ p["w1"])}
    drop = lambda block, a: np.diagonal(
        block.reshape(*block.shape[: block.ndim - 2 * a.ndim], a.size, a.size),
        axis1=-2,
        axis2=-1,
    ).reshape(*block.shape[: block.ndim - a.ndim])
    for argnums in (0, 1, -1):
        arg = (params, x)[argnums]
        keys = jax.tree_util.tree_leaves_with_path(arg)
        full = jax.jit(jax.hessian(several, argnums))(params, x)
        actual = jax.jit(fomoh_jax.hessian_diagonal(several, argnums))(params, x)
        for out, table in full.items():
            assert jax.tree.structure(actual[out]) == jax.tree.structure(arg)
            for (path, leaf), ours in zip(keys, jax.tree.leaves(actual[out])):
                block = table
                for key in (*path, *path):
                    block = block[key.key]
                assert_close(ours, drop(np.asarray(block), leaf))
    shapes = lambda ours: jax.eval_shape(ours, params, x)
    both = shapes(fomoh_jax.hessian_diagonal(several, (1, 0)))["rows"]
    assert jax.tree.structure(both) == jax.tree.structure((x, params))
    assert both[0].shape == (5, 4, 5, 3)
    one = shapes(fomoh_jax.hessian_diagonal(several, (0,)))["loss"]
    assert jax.tree.structure(one) == jax.tree.structure((params,))
    total = jax.jit(fomoh_jax.laplacian(several, (0, 1)))(params, x)
    assert_close(total, trace(several, (params, x)))


@pytest.mark.slow
def test_weights_are_in_the_order_of_ravel_pytree_and_need_no_symmetry():
    fun, (params, x) = mlp(jnp.tanh)
    weights = weights_for((params,))
    weighted = jax.jit(lambda w: fomoh_jax.laplacian(fun, weights=w)(params, x))
    hessian = flat_hessian(lambda p: fun(p, x), (params,))
    ours = weighted(weights)
    assert_close(ours, np.trace(np.asarray(weights) @ hessian))
    assert_close(weighted(weights.T), ours)


@pytest.mark.slow
def test_weights_of_ones_of_integers_and_from_numpy():
    x = normal(4)
    expected = np.sum(jax.jit(jax.hessian(rosenbrock))(x))
    ones = np.ones((4, 4), int)
    assert_close(jax.jit(fomoh_jax.laplacian(rosenbrock, weights=ones))(x), expected)


@pytest.mark.slow
def test_dense_products_that_broadcast_and_batch():
    # Every layout of a dot: batched, with two contracted dimensions, with no rows.
    def fun(a, b):
        return (
            jnp.einsum("bij,bjk->bik", a, b),
            jnp.einsum("bij,bji->b", a, b),
            jnp.einsum("bij,cji->cb", a, b),
            jnp.einsum("bij,bjk->kb", a, jnp.sin(b)),
            jnp.einsum("bij,bjk->", jnp.cos(a), a),
        )

    primals = normal(2, 3, 3), normal(2, 3, 3, seed=1)
    hessian = flat_hessian(fun, primals)
    for weights in (weights_for(primals), None):
        ours = jax.jit(fomoh_jax.laplacian(fun, (0, 1), weights=weights))
        assert_close(ours(*primals), trace_of(hessian, weights))


# --- composes -----------------------------------------------------------------------


def test_vmap_and_jit_agree_with_one_by_one():
    x, weights = normal(3, 4), weights_for((normal(4),))
    fun = lambda x: jnp.stack([rosenbrock(x), jnp.sum(jnp.tanh(x))])
    for ours in (
        fomoh_jax.laplacian(fun),
        fomoh_jax.laplacian(fun, weights=weights),
        fomoh_jax.hessian_diagonal(fun),
    ):
        one_by_one = np.stack([jax.jit(ours)(row) for row in x])
        assert_close(jax.jit(jax.vmap(ours))(x), one_by_one)


@pytest.mark.slow
def test_vmap_over_the_weights_and_over_a_loop():
    a, many = normal(2, 3), normal(5, 3, 3, seed=2)
    weighted = lambda a, w: fomoh_jax.laplacian(newton_root, weights=w)(a)
    expected = np.stack([jax.jit(weighted)(a[0], w) for w in many])
    assert_close(jax.vmap(weighted, (None, 0))(a[0], many), expected)
    laplacian = fomoh_jax.laplacian(newton_root)
    expected = np.stack([jax.jit(laplacian)(row) for row in a])
    assert_close(jax.jit(jax.vmap(laplacian))(a), expected)


@pytest.mark.slow
def test_gradient_of_the_laplacian():
    fun, (params, x) = mlp(jnp.tanh)
    weights = weights_for((x,))
    for w in (None, weights):
        ours = lambda params: fomoh_jax.laplacian(fun, 1, weights=w)(params, x)
        theirs = lambda params: trace(lambda x: fun(params, x), (x,), w)
        assert_close(jax.jit(jax.grad(ours))(params), jax.jit(jax.grad(theirs))(params))
    by_weights = lambda w: fomoh_jax.laplacian(fun, 1, weights=w)(params, x)
    hessian = flat_hessian(lambda x: fun(params, x), (x,))
    assert_close(jax.jit(jax.grad(by_weights))(weights), hessian)


@pytest.mark.slow
def test_a_laplacian_of_a_laplacian():
    x = normal(3)
    twice = fomoh_jax.laplacian(fomoh_jax.laplacian(rosenbrock))
    theirs = lambda x: jnp.trace(jax.hessian(rosenbrock)(x))
    hessian = jax.jit(jax.hessian(theirs))(x)
    assert_close(jax.jit(twice)(x), jnp.trace(hessian))
    ours = jax.jit(jax.hessian(fomoh_jax.laplacian(rosenbrock)))
    assert_close(ours(x), hessian)


@pytest.mark.slow
def test_keywords_constants_and_arguments_without_elements():
    powers = lambda x, *, power: jnp.sum(x**power)
    x = jnp.array([1.0, 2.0])
    assert_close(fomoh_jax.laplacian(powers)(x, power=3), jnp.array(18.0))
    constant = lambda x: jnp.ones(2)
    assert_close(fomoh_jax.laplacian(constant)(x), jnp.zeros(2))
    assert_close(fomoh_jax.hessian_diagonal(constant)(x), jnp.zeros((2, 2)))
    empty = lambda x: jnp.sum(jnp.tanh(x)) + 1
    assert_close(fomoh_jax.laplacian(empty)(jnp.zeros(0)), jnp.array(0.0))
    assert fomoh_jax.hessian_diagonal(empty)(jnp.zeros(0)).shape == (0,)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes_are_kept(dtype):
    x = normal(4).astype(dtype)
    weights = weights_for((x,))
    for ours in (
        fomoh_jax.laplacian(rosenbrock),
        fomoh_jax.laplacian(rosenbrock, weights=weights),
        fomoh_jax.hessian_diagonal(rosenbrock),
    ):
        assert jax.jit(ours)(x).dtype == dtype


@pytest.mark.optimised
def test_a_mixture_of_dtypes_inside_the_function():
    fun = lambda x: jnp.sum(jnp.sin(x.astype("float32")) ** 2)
    x = normal(3)
    weights = weights_for((x,))
    ours = jax.jit(fomoh_jax.laplacian(fun, weights=weights))(x)
    expected = np.trace(np.asarray(weights) @ jax.jit(jax.hessian(fun))(x))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# --- elliptic equations -------------------------------------------------------------


def _field(params, x):
    """A network of ``[3]`` to ``[2]`` that vanishes on the unit sphere."""
    return (1 - x @ x) * (jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"])


FIELD = {"w1": normal(3, 8), "b1": normal(8, seed=1), "w2": normal(8, 2, seed=2)}
POINTS = 0.5 * normal(6, 3, seed=4)
SOURCE = normal(6, 2, seed=5)


def _stretched(x):
    """Weights that vary in space and are not symmetric."""
    return jnp.eye(3) + jnp.outer(x, jnp.sin(x)) + jnp.array([0.0, 1.0, 0.0]) * x[0]


ELLIPTIC = {"Laplacian": None, "weighted": _stretched}


def _ours(fun, x, weights):
    return fomoh_jax.laplacian(fun, weights=weights)(x)


def _theirs(fun, x, weights):
    weights = jnp.eye(len(x)) if weights is None else weights
    return jnp.einsum("ij,...ji->...", weights, jax.hessian(fun)(x))


def _at_points(trace, weights, params, points):
    """``Σ_ij C_ij(x) ∂_ij u(x)`` of the field, ``[points, 2]``."""

    def at(x):
        c = None if weights is None else weights(x)
        return trace(lambda x: _field(params, x), x, c)

    return jax.vmap(at)(points)


def _residual_loss(trace, weights):
    def loss(params, points):
        return jnp.mean((_at_points(trace, weights, params, points) - SOURCE) ** 2)

    return loss


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", ELLIPTIC)
def test_elliptic_operators_of_a_field_at_a_batch_of_points(name):
    operator = lambda trace: (
        lambda params, points: _at_points(trace, ELLIPTIC[name], params, points)
    )
    expected = jax.jit(operator(_theirs))(FIELD, POINTS)
    assert expected.shape == (6, 2)
    assert_close(operator(_ours)(FIELD, POINTS), expected)
    assert_close(jax.jit(operator(_ours))(FIELD, POINTS), expected)


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("run", [jax.jit, slow(lambda f: f)], ids=["jit", "eager"])
@pytest.mark.parametrize("argnum", [0, 1])
@pytest.mark.parametrize("name", ELLIPTIC)
def test_gradient_of_a_residual_loss_by_reverse_mode(name, argnum, run):
    # By the network's parameters, and by where its equation is asked to hold.
    ours, theirs = (
        jax.value_and_grad(_residual_loss(trace, ELLIPTIC[name]), argnum)
        for trace in (_ours, _theirs)
    )
    expected = jax.jit(theirs)(FIELD, POINTS)
    assert_close(run(ours)(FIELD, POINTS), expected)


@pytest.mark.slow
def test_second_derivatives_of_a_residual_loss():
    ours, theirs = (_residual_loss(trace, _stretched) for trace in (_ours, _theirs))
    expected = jax.jit(jax.hessian(theirs))(FIELD, POINTS)
    assert_close(jax.jit(jax.hessian(ours))(FIELD, POINTS), expected)
    assert_close(jax.jit(fomoh_jax.hessian(ours))(FIELD, POINTS), expected)


@pytest.mark.slow
def test_gradient_by_a_coefficient_of_the_operator():
    # An inverse problem: the coefficient is what is sought.
    scaled = lambda trace: (
        lambda scale: _residual_loss(trace, lambda x: scale * _stretched(x))(
            FIELD, POINTS
        )
    )
    expected = jax.jit(jax.grad(scaled(_theirs)))(0.7)
    assert_close(jax.jit(jax.grad(scaled(_ours)))(0.7), expected)


@pytest.mark.slow
def test_gradients_of_an_ensemble_and_in_a_scan_over_batches():
    many = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p, -p]), FIELD)
    ours, theirs = (
        jax.grad(_residual_loss(trace, _stretched)) for trace in (_ours, _theirs)
    )
    ensemble = lambda grad: jax.vmap(grad, (0, None))(many, POINTS)
    expected = jax.jit(lambda: ensemble(theirs))()
    assert_close(jax.jit(lambda: ensemble(ours))(), expected)

    def descend(grad):
        def step(params, scale):
            slope = grad(params, scale * POINTS)
            return jax.tree.map(lambda p, s: p - 1e-3 * s, params, slope), None

        return lax.scan(step, FIELD, jnp.linspace(0.5, 1, 4))[0]

    assert_close(descend(ours), descend(theirs))


# --- fast ---------------------------------------------------------------------------


def _network(d, width=64):
    params = [
        (normal(a, b).astype("float32") / a**0.5, jnp.zeros(b, "float32"))
        for a, b in ((d, width), (width, width), (width, width), (width, 1))
    ]

    def apply(params, x):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        w, b = params[-1]
        return (x @ w + b)[0]

    return apply, params, normal(64, d).astype("float32")


def _compiled(laplacian, d):
    apply, params, x = _network(d)
    batched = lambda params, x: jax.vmap(laplacian(lambda x: apply(params, x)))(x)
    return jax.jit(batched).lower(params, x).compile()


def _nested(fun):
    def laplacian(x):
        along = lambda v: lambda x: jax.jvp(fun, (x,), (v,))[1]
        second = lambda v: jax.jvp(along(v), (x,), (v,))[1]
        return jnp.sum(jax.vmap(second)(jnp.eye(x.size, dtype=x.dtype)))

    return laplacian


def _summed_diagonal(fun):
    return lambda x: jnp.sum(fomoh_jax.hessian_diagonal(fun)(x))


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("d", [3, 10, 50])
def test_a_laplacian_costs_two_thirds_of_nested_jvp(d):
    ours, nested = (_compiled(f, d) for f in (fomoh_jax.laplacian, _nested))
    flops = [c.cost_analysis()["flops"] for c in (ours, nested)]
    # The primal, the seconds and d tangents, where nesting has 2 d second passes.
    assert flops[0] <= {3: 0.8, 10: 0.65, 50: 0.55}[d] * flops[1]


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("d", [10, 50])
def test_a_laplacian_holds_no_term_of_the_sum(d):
    trace, terms = (_compiled(f, d) for f in (fomoh_jax.laplacian, _summed_diagonal))
    held = [c.memory_analysis().temp_size_in_bytes for c in (trace, terms)]
    one_layer = 64 * d * 64 * 4  # batch, directions, width
    # The tangents before and after a product; the diagonal has as many seconds.
    assert held[0] <= 2.5 * one_layer
    assert held[0] <= 0.75 * held[1]


def test_a_dot_of_two_numbers_is_one_product_contracted_over_the_directions():
    a, b = normal(20, 8), normal(8, 20, seed=1)
    laplacian = fomoh_jax.laplacian(lambda x: jnp.tanh(x @ a) @ (b @ jnp.sin(x)))
    dots = lambda fun: [
        eqn
        for eqn in jax.make_jaxpr(fun)(normal(20)).eqns
        if eqn.primitive.name == "dot_general"
    ]
    both = [e for e in dots(laplacian) if len(e.params["dimension_numbers"][0][0]) == 2]
    assert len(both) == 1 and not both[0].params["dimension_numbers"][1][0]


@pytest.mark.optimised
def test_hessian_diagonal_carries_one_second_a_direction():
    x = normal(300)
    compiled = jax.jit(fomoh_jax.hessian_diagonal(rosenbrock)).lower(x).compile()
    whole = 300 * 300 * 300 * 8  # one intermediate with a second for every pair
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 20


@pytest.mark.slow
def test_the_generic_rule_under_the_trace():
    def fun(a):
        values, vectors = jnp.linalg.eigh(a + a.T)
        return values, lax.stop_gradient(jnp.sign(vectors)) * vectors

    a = normal(3, 3)
    assert_close(fomoh_jax.laplacian(fun)(a), trace(fun, (a,)))
    weights = weights_for((a,))
    ours = fomoh_jax.laplacian(fun, weights=weights)(a)
    assert_close(ours, trace(fun, (a,), weights))
