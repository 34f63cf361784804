"""Solves and factorisations against nested jvp, and their cost beside it."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fomoh_jax
from tests.reference import (
    assert_agrees_with_nested_jvp,
    normal,
    random_directions,
    second_jvp,
    slow,
)

MATRIX = normal(3, 3, seed=4) + 4 * jnp.eye(3)


@pytest.mark.slow
def test_linear_solve_by_matrix_by_right_hand_side_and_by_both():
    curved = lambda a: jnp.sin(a) + 4 * jnp.eye(3)
    assert_agrees_with_nested_jvp(
        lambda a, b: jnp.linalg.solve(curved(a), b**2), normal(3, 3), normal(3)
    )
    assert_agrees_with_nested_jvp(
        lambda a: jnp.linalg.solve(curved(a), jnp.arange(3.0)), normal(3, 3)
    )
    assert_agrees_with_nested_jvp(lambda b: jnp.linalg.solve(MATRIX, b**2), normal(3))


@pytest.mark.slow
def test_conjugate_gradients_whose_matrix_and_right_hand_side_vary():
    def solve(b):
        matvec = lambda x: MATRIX @ MATRIX.T @ x * (1 + b[0] ** 2)
        return jax.scipy.sparse.linalg.cg(matvec, b**2, tol=1e-15)[0]

    assert_agrees_with_nested_jvp(solve, normal(3))


@pytest.mark.slow
def test_custom_linear_solve_sees_through_a_custom_vjp_in_its_matrix():
    @jax.custom_vjp
    def stretched(x, a):
        return (MATRIX + jnp.sin(a)) @ x

    def backward(*_):
        raise AssertionError("not a forward pass")

    stretched.defvjp(lambda x, a: (stretched(x, a), None), backward)

    def solve(a, b, product):
        matrix = lax.stop_gradient(MATRIX + jnp.sin(a))
        return lax.custom_linear_solve(
            lambda x: product(x, a), b, lambda _, b: jnp.linalg.solve(matrix, b)
        )

    a, b = normal(3, 3), normal(3)
    ours = jax.jit(fomoh_jax.hessian(lambda a: solve(a, b, stretched)))(a)
    plain = lambda x, a: (MATRIX + jnp.sin(a)) @ x
    expected = jax.jit(jax.jacfwd(jax.jacfwd(lambda a: solve(a, b, plain))))(a)
    assert jnp.max(jnp.abs(ours - expected)) < 1e-12


@pytest.mark.slow
def test_custom_linear_solve_with_auxiliary_results():
    def solve(a, b):
        return lax.custom_linear_solve(
            lambda x: a * x,
            b,
            lambda _, b: (b / a, {"steps": 3, "norm": b.sum()}),
            has_aux=True,
        )

    assert_agrees_with_nested_jvp(solve, 2 + normal(3) ** 2, normal(3, seed=1))


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("left_side", "lower", "transpose_a", "unit_diagonal"),
    # The others where time matters less.
    [
        chosen if sum(chosen[1:]) == 1 else slow(*chosen)
        for chosen in itertools.product([False, True], repeat=4)
    ],
)
def test_triangular_solve(left_side, lower, transpose_a, unit_diagonal):
    fun = lambda a, b: lax.linalg.triangular_solve(
        a,
        b,
        left_side=left_side,
        lower=lower,
        transpose_a=transpose_a,
        unit_diagonal=unit_diagonal,
    )
    assert_agrees_with_nested_jvp(fun, MATRIX, normal(3, 3), jit=False)


def test_triangular_solve_of_conjugated_complex_matrices_in_a_batch():
    def fun(a, b):
        matrix = a + 1j * a**2 + 3 * jnp.eye(3)
        x = lax.linalg.triangular_solve(
            matrix, b + 2j * b**2, left_side=True, conjugate_a=True, transpose_a=True
        )
        return x.real * x.imag

    assert_agrees_with_nested_jvp(fun, normal(2, 3, 3), normal(2, 3, 2))


def test_tridiagonal_solve_determinants_and_factorisations():
    tridiagonal = (normal(4), 4 + normal(4, seed=1) / 9, normal(4, seed=2))
    assert_agrees_with_nested_jvp(
        lax.linalg.tridiagonal_solve, *tridiagonal, normal(4, 2, seed=3)
    )
    assert_agrees_with_nested_jvp(jnp.linalg.det, normal(4, 4))
    assert_agrees_with_nested_jvp(lambda a: lax.linalg.lu(a)[0], normal(2, 4, 3))
    assert_agrees_with_nested_jvp(
        lambda a: jnp.linalg.cholesky(a @ a.T + jnp.eye(3)), normal(3, 3)
    )


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("name", ["lu", "solve", "triangular"])
def test_ill_conditioned_matrices_lose_no_more_digits_than_in_nested_jvp(name):
    basis, _ = jnp.linalg.qr(normal(5, 5))
    matrix = basis @ jnp.diag(jnp.geomspace(1, 1e-3, 5)) @ basis.T
    right = normal(5, 1, seed=3)
    fun = {
        "lu": lambda a: lax.linalg.lu(a)[0],
        "solve": lambda a: jnp.linalg.solve(a, right.astype(a.dtype)),
        "triangular": lambda a: lax.linalg.triangular_solve(
            a, right.astype(a.dtype), left_side=True
        ),
    }[name]
    arguments = (matrix, normal(5, 5, seed=1), normal(5, 5, seed=2))

    def second(jvp, dtype):
        x, v, w = (a.astype("float32").astype(dtype) for a in arguments)
        return jax.jit(lambda *a: jvp(fun, *a)[3])((x,), (v,), (w,))

    truth = second(second_jvp, "float64")
    error = lambda jvp: jnp.max(jnp.abs(second(jvp, "float32") - truth))
    assert error(fomoh_jax.hyper_jvp) <= 5 * error(second_jvp)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("name", "bound"), [("solve", 1.0), ("triangular", 0.6), ("lu", 0.6)]
)
def test_a_solve_costs_no_more_than_nested_jvp(name, bound):
    size, k = 40, 4
    fun = {
        "solve": jnp.linalg.solve,
        "triangular": lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True),
        "lu": lambda a, b: lax.linalg.lu(a)[0] @ b,
    }[name]
    primals = (normal(size, size) + 5 * jnp.eye(size), normal(size, 1))
    directions = random_directions(primals, k)

    def nested(primals, directions):
        def slopes(*xs):
            along = lambda v: jax.jvp(fun, xs, v)
            return jax.vmap(along, out_axes=(None, 0))(directions)

        along = lambda v: jax.jvp(slopes, primals, v)
        return jax.vmap(along, out_axes=((None, None), 0))(directions)

    ours = lambda primals, directions: fomoh_jax.quadratic_model(
        fun, primals, directions
    )
    flops = lambda f: jax.jit(f).lower(primals, directions).compile().cost_analysis()
    assert flops(ours)["flops"] <= bound * flops(nested)["flops"]
