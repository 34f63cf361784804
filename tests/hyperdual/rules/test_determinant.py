"""Logarithms of determinants, against the derivatives that JAX takes by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fomoh_jax
from fomoh_jax import plans
from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._hyperdual.rules import custom_jvp
from tests.reference import assert_agrees_with_nested_jvp, assert_close, normal


def real(x):
    return jnp.linalg.slogdet(x)


def of_complex(x):
    sign, log = jnp.linalg.slogdet(x[0] + 1j * x[1])
    return sign**2, log


MATRICES = {
    "one": (real, (3, 3)),
    "a batch": (real, (2, 3, 4, 4)),
    "one number": (real, (1, 1)),
    "none": (real, (0, 3, 3)),
    "empty": (real, (2, 0, 0)),
    "complex": (of_complex, (2, 2, 4, 4)),
    "determinants": (jnp.linalg.det, (2, 4, 4)),
    "mapped": (jax.vmap(lambda x: jnp.linalg.slogdet(x)[1]), (3, 4, 4)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_nested_jvp(name):
    fun, shape = MATRICES[name]
    assert_agrees_with_nested_jvp(fun, normal(*shape))


@pytest.mark.parametrize("plan", ["auto", plans.adjoint()], ids=["auto", "adjoint"])
def test_reverse_passes_and_traces_agree(plan):
    fun, x = lambda x: real(jnp.sin(x))[1], normal(3, 3)
    hessian = jax.jit(fomoh_jax.hessian(fun, plan=plan))(x)
    expected = jax.jit(jax.hessian(fun))(x)
    assert_close(hessian, expected)
    flat = np.reshape(expected, (9, 9))
    weights = normal(9, 9)
    laplacian = jax.jit(fomoh_jax.laplacian(fun, weights=weights))(x)
    assert_close(laplacian, jnp.asarray(np.sum(weights * flat)))


@pytest.mark.slow
def test_a_laplacian_can_be_differentiated_again():
    log = lambda x: of_complex(jnp.stack([x, jnp.cos(x)]))[1]
    ours = jax.jit(jax.grad(fomoh_jax.laplacian(log)))
    matrix = lambda x: jax.hessian(log)(x).reshape(9, 9)
    theirs = jax.jit(jax.grad(lambda x: jnp.trace(matrix(x))))
    assert_close(ours(normal(3, 3)), theirs(normal(3, 3)))


@pytest.mark.slow
def test_directions_may_be_along_any_axis_and_absent():
    # A product with a matrix leaves them before its columns; one matrix has none.
    def fun(a, b):
        logs = jnp.linalg.slogdet(jnp.stack([a @ b, b, jnp.eye(3)]))[1]
        return logs, jnp.linalg.slogdet(b)[1]

    assert_agrees_with_nested_jvp(fun, normal(3, 3), normal(3, 3, seed=1))


def test_it_is_known_from_functions_of_that_name(monkeypatch):
    seen = []
    rule = custom_jvp.slogdet
    monkeypatch.setattr(custom_jvp, "slogdet", lambda *a: seen.append(a) or rule(*a))

    @jax.custom_jvp
    def _slogdet_lu(x):
        return jnp.sum(x**2)

    _slogdet_lu.defjvp(lambda p, t: (_slogdet_lu(*p), jnp.sum(3 * p[0] * t[0])))
    x = normal(3, 3)
    assert_close(fomoh_jax.laplacian(_slogdet_lu)(x), jnp.array(27.0))
    assert not seen
    fomoh_jax.laplacian(lambda x: real(x)[1])(x)
    of_many = lambda x: jnp.sum(jax.vmap(lambda x: real(x)[1])(x))
    fomoh_jax.laplacian(of_many)(normal(2, 4, 4))
    assert len(seen) == 2


def test_it_solves_nothing_for_each_direction():
    network = lambda x: jnp.tanh(x @ normal(12, 64)).reshape(8, 8)
    log_psi = lambda x: real(network(x))[1]
    jaxpr = jax.make_jaxpr(fomoh_jax.laplacian(log_psi))(normal(12))
    solved = [
        eqn.outvars[0].aval.shape
        for eqn in equations_in(jaxpr)
        if eqn.primitive.name == "triangular_solve"
    ]
    assert set(solved) == {(8, 8)}


def equations_in(jaxpr):
    """Of a program, and of those in it."""
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        for program in programs_in(eqn.params):
            yield from equations_in(program)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_vmap_that_moves_the_axes_of_matrices_is_not_mistaken(axis):
    base, moves = normal(3, 3, 3), normal(2, 3, 3, 3, seed=1)

    def fun(x):
        matrices = base + jnp.tensordot(jnp.sin(x), moves, 1)
        return jax.vmap(jnp.linalg.slogdet, in_axes=axis)(matrices)[1]

    assert_agrees_with_nested_jvp(fun, normal(2))
