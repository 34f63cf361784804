"""What operators return beside second derivatives, and the weights that they take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fomoh_jax as fj
from tests.programs import PROGRAMS, mlp, rosenbrock
from tests.reference import assert_close, normal, partly_slow

OPERATORS = {
    "hessian": fj.hessian,
    "hessian_diagonal": fj.hessian_diagonal,
    "laplacian": fj.laplacian,
    "value_grad_and_laplacian": fj.value_grad_and_laplacian,
    "value_grad_and_hessian": fj.value_grad_and_hessian,
}
SIGNED = jnp.array([2.0, 0.0, -0.5, 1.0])


def traced(hessian, weights):
    """``tr(C H)`` of ``[*out, D, D]``."""
    return jax.tree.map(lambda h: jnp.einsum("ij,...ji->...", weights, h), hessian)


def forward_twice(fun):
    return jax.jacfwd(jax.jacfwd(fun))


def layered(x):
    """Complex numbers from real ones, by products, solves, selections and a loop."""
    wave = jnp.exp(1j * x[:3]) * x[3]
    matrix = jnp.outer(wave, jnp.sin(x[:3])) + 2 * jnp.eye(3, dtype=x.dtype)
    sign, logarithm = jnp.linalg.slogdet(matrix)
    solved = jnp.linalg.solve(matrix, wave)
    for _ in range(2):
        solved = solved**2 / (1 + jnp.abs(solved) ** 2)
    return {
        "log": logarithm + jnp.log(sign),
        "rows": jnp.where(x[:3] > 0, solved, jnp.conj(solved)),
        "real": jnp.real(jnp.sum(solved)),
    }


# --- right --------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", partly_slow(PROGRAMS))
def test_all_three_agree_with_jax(name):
    fun, primals = PROGRAMS[name]
    argnums = tuple(range(len(primals)))
    flat, unravel = ravel_pytree(primals)
    weights = normal(len(flat), seed=4)
    along = lambda x: fun(*unravel(x))
    gradient = jax.jacfwd(fun, argnums)

    def ours(*primals):
        operator = fj.value_grad_and_laplacian
        with_laplacian = operator(fun, argnums, weights=weights)(*primals)
        return with_laplacian, fj.value_grad_and_hessian(fun, argnums)(*primals)

    def theirs(*primals):
        value, slopes = fun(*primals), gradient(*primals)
        flat, _ = ravel_pytree(primals)
        trace = traced(forward_twice(along)(flat), jnp.diag(weights))
        hessian = jax.jacfwd(gradient, argnums)(*primals)
        return (
            fj.ValueGradientLaplacian(value, slopes, trace),
            fj.ValueGradientHessian(value, slopes, hessian),
        )

    assert_close(jax.jit(ours)(*primals), jax.jit(theirs)(*primals))


@pytest.mark.slow
def test_complex_outputs():
    log_psi = lambda x: -0.5 * jnp.sum(x**2) + 1j * jnp.prod(x)
    assert fj.laplacian(log_psi)(normal(3)) == -3 + 0j
    x = normal(4)
    value, gradient, hessian = jax.jit(
        lambda x: (layered(x), jax.jacfwd(layered)(x), forward_twice(layered)(x))
    )(x)
    run = lambda operator, **options: jax.jit(operator(layered, **options))(x)
    assert_close(run(fj.hessian), hessian)
    assert_close(
        run(fj.hessian_diagonal),
        jax.tree.map(lambda h: jnp.diagonal(h, axis1=-2, axis2=-1), hessian),
    )
    factor = normal(4, 2)
    assert_close(run(fj.laplacian, factor=factor), traced(hessian, factor @ factor.T))
    assert_close(
        run(fj.value_grad_and_laplacian, weights=SIGNED),
        fj.ValueGradientLaplacian(value, gradient, traced(hessian, np.diag(SIGNED))),
    )


@pytest.mark.slow
@pytest.mark.optimised
def test_complex_outputs_in_single_precision():
    x = normal(4)
    single = jax.jit(fj.value_grad_and_laplacian(layered))(x.astype("float32"))
    assert single.laplacian["log"].dtype == "complex64"
    double = jax.jit(fj.value_grad_and_laplacian(layered))(x)
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double)):
        np.testing.assert_allclose(a, b, rtol=2e-3)


@pytest.mark.parametrize("argnums", [0, 1, -1, (0, 1), (1,)])
def test_gradients_are_structured_like_those_of_jax(argnums):
    fun, primals = mlp(jnp.tanh)
    several = lambda p, x: {"loss": fun(p, x), "rows": jnp.sin(x @ p["w1"])}
    for operator in (fj.value_grad_and_laplacian, fj.value_grad_and_hessian):
        shapes = lambda f, fun=fun: jax.eval_shape(f, *primals)
        of_one = shapes(operator(fun, argnums))
        assert of_one[:2] == shapes(jax.value_and_grad(fun, argnums))
        of_several = shapes(operator(several, argnums)).gradient
        assert of_several == shapes(jax.jacfwd(several, argnums))


@pytest.mark.slow
def test_the_dtype_of_a_gradient_is_that_of_jax():
    x = jnp.ones(2, "float32")
    wide = lambda x: jnp.sum(jnp.sin(x.astype("float64")))
    rows = lambda x: jnp.sin(x.astype("float64"))
    for operator in (fj.value_grad_and_laplacian, fj.value_grad_and_hessian):
        assert operator(wide)(x).gradient.dtype == jax.grad(wide)(x).dtype
        assert operator(rows)(x).gradient.dtype == jax.jacfwd(rows)(x).dtype


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_auxiliary_is_returned_and_not_differentiated(name):
    operator, x = OPERATORS[name], normal(4)
    fun = lambda x, scale: (rosenbrock(scale * x), {"x": x, "n": jnp.arange(2)})
    alone = lambda x, scale: rosenbrock(scale * x)
    found, aux = jax.jit(operator(fun, has_aux=True))(x, 2.0)
    assert_close(found, jax.jit(operator(alone))(x, 2.0))
    assert_close(aux, {"x": x, "n": jnp.arange(2)})
    with pytest.raises(TypeError, match="has_aux=True, fun must return a pair"):
        operator(alone, has_aux=True)(x, 2.0)


# --- weights ------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_of_any_sign_and_zero():
    x = normal(4)
    hessian = forward_twice(rosenbrock)(x)
    weighted = jax.jit(lambda w: fj.laplacian(rosenbrock, weights=w)(x))
    assert_close(weighted(SIGNED), jnp.sum(SIGNED * jnp.diag(hessian)))
    # Also by reverse mode, where a root of the weights would be infinite at zero.
    assert_close(jax.jit(jax.grad(weighted))(SIGNED), jnp.diag(hessian))
    wave = lambda tx: jnp.sin(tx[0] - tx[1])  # solves the wave equation
    of_wave = fj.laplacian(wave, weights=np.array([-1.0, 1.0]))
    assert abs(of_wave(jnp.array([0.3, 0.7]))) < 1e-15


@pytest.mark.slow
def test_a_factor_is_as_good_as_the_weights():
    fun, (params, x) = mlp(jnp.tanh)
    size = ravel_pytree((params, x))[0].size
    for columns in (0, 1, 3):
        factor = normal(size, columns)
        by = lambda **options: jax.jit(fj.laplacian(fun, (0, 1), **options))(params, x)
        assert_close(by(factor=factor), by(weights=factor @ factor.T))


def test_a_factor_for_each_point_and_its_derivative():
    points, factors = normal(3, 4), normal(3, 4, 2, seed=1)
    by_factor = lambda x, s: fj.laplacian(rosenbrock, factor=s)(x)
    by_hessian = lambda x, s: jnp.sum((s @ s.T) * forward_twice(rosenbrock)(x))
    both = lambda f: jax.vmap(jax.value_and_grad(f, (0, 1)))
    ours, theirs = (jax.jit(both(f)) for f in (by_factor, by_hessian))
    assert_close(ours(points, factors), theirs(points, factors))


# --- costs --------------------------------------------------------------------------


@functools.cache
def flops(dimensions, **shapes):
    """Of the Laplacian of a network at a batch of points, by the compiler."""
    inner, outer = normal(dimensions, 64), normal(64, 64, seed=1)
    fun = lambda x: jnp.sum(jnp.tanh(jnp.tanh(x @ inner) @ outer))

    def batch(points, options):
        return jax.vmap(fj.laplacian(fun, **options))(points)

    options = {name: jnp.ones(shape) for name, shape in shapes.items()}
    compiled = jax.jit(batch).lower(jnp.ones((32, dimensions)), options).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.optimised
def test_weights_that_are_a_diagonal_cost_what_no_weights_cost():
    assert flops(50, weights=(50,)) < 1.03 * flops(50)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_factor_costs_its_columns_and_not_the_dimensions():
    assert flops(50, factor=(50, 50)) < 1.2 * flops(50)
    assert flops(50, factor=(50, 5)) < 0.2 * flops(50)


# --- refused ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_complex_arguments_are_refused_with_what_to_do(name):
    fun = lambda z: jnp.sum(jnp.abs(z) ** 2)
    with pytest.raises(TypeError, match=r"argument 0 .*complex.* real and imaginary"):
        OPERATORS[name](fun)(jnp.ones(2) * 1j)
    # What the sentence says.
    in_parts = lambda re, im: fun(re + 1j * im)
    assert_close(fj.laplacian(in_parts, (0, 1))(normal(2), normal(2)), jnp.array(8.0))


@pytest.mark.parametrize("name", OPERATORS)
def test_errors_say_who_needs_what(name):
    operator, x = OPERATORS[name], normal(2)
    with pytest.raises(TypeError, match=rf"{name} needs real .*argument 0\['n'\].*int"):
        operator(lambda x: x["n"])({"n": jnp.arange(3)})
    with pytest.raises(TypeError, match=rf"{name} needs .* output\[1\] has dtype int"):
        operator(lambda x: (x, jnp.argmax(x)))(x)
    with pytest.raises(ValueError, match=r"names argument 1, .* with 1 positional"):
        operator(lambda x: x, 1)(1.0)


def test_weights_and_factors_of_other_shapes_and_dtypes_are_refused():
    x = normal(3)
    for options, error, message in (
        ({"weights": np.ones(2)}, ValueError, r"\[3\].*or \[3, 3\].*got shape \[2\]"),
        ({"weights": np.ones((3, 2))}, ValueError, r"got shape \[3, 2\]"),
        ({"weights": 1j * np.ones(3)}, TypeError, "weights .*complex128"),
        ({"factor": np.ones(3)}, ValueError, r"\[3, r\].*got shape \[3\]"),
        ({"factor": np.ones((2, 3))}, ValueError, r"\[3, r\].*got shape \[2, 3\]"),
        ({"factor": 1j * np.ones((3, 1))}, TypeError, "factor .*complex128"),
        ({"factor": np.eye(3), "weights": np.eye(3)}, ValueError, "and not both"),
    ):
        with pytest.raises(error, match=message):
            fj.laplacian(rosenbrock, **options)(x)
