"""Bad input gets an error at the call that names what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax import curvature
from tests.reference import normal

KEY, X = jax.random.key(0), normal(3)
ESTIMATES = [
    curvature.hutchinson_trace,
    curvature.hutchinson_diagonal,
    curvature.sampled_hessian,
    curvature.sampled_diagonal,
]


def fun(x):
    return jnp.sum(x**3)


def fails(error, match, call):
    with pytest.raises(error, match=match):
        jax.eval_shape(call)


@pytest.mark.parametrize("estimate", ESTIMATES, ids=lambda f: f.__name__)
def test_estimates(estimate):
    name = estimate.__name__
    run = lambda f=fun, x=X, n=4, key=KEY, **kwargs: (
        lambda: estimate(f, probes=n, **kwargs)(key, x)
    )
    fails(ValueError, "argnums names argument 1, but.* 1 positional", run(argnums=1))
    fails(ValueError, "probes must be at least 2.*got 1", run(n=1))
    fails(TypeError, "probes must be a Python integer", run(n=2.5))
    fails(ValueError, "chunk_size must be at least 1; got 0", run(chunk_size=0))
    if estimate is not curvature.hutchinson_trace:  # of any outputs
        fails(TypeError, rf"{name} needs a function.*shape \[3\]", run(jnp.sin))
        fails(TypeError, f"{name} needs a function.*PyTreeDef", run(lambda x: (x[0],)))
    fails(ValueError, f"{name} needs an argument that varies", run(x=X[:0]))
    fails(TypeError, r"key must be one PRNG key.*got 0\.", run(key=0))
    for x, dtype in ((1j * X, "complex"), (3, "int")):
        fails(
            TypeError, rf"{name} needs real.*; argument 0 has dtype {dtype}", run(x=x)
        )


def test_baselines():
    sampled = lambda f, b: lambda: f(fun, probes=4, baseline=b)(KEY, X)
    of_hessian, of_diagonal = (
        lambda b, f=f: sampled(f, b)
        for f in (curvature.sampled_hessian, curvature.sampled_diagonal)
    )
    fails(ValueError, r"baseline must have shape \[3, 3\]; got \[3\]", of_hessian(X))
    fails(ValueError, r"baseline must have shape \[3\]; got \[2\]", of_diagonal(X[:2]))
    for of_either in (of_hessian, of_diagonal):
        fails(TypeError, "baseline must be real; got dtype complex", of_either(1 + 1j))
        fails(
            TypeError, "baseline must be of real numbers; got 'one'", of_either("one")
        )
    of_two = lambda f, b: (
        lambda: f(lambda x, y: fun(x) + fun(y), (0, 1), probes=4, baseline=b)(KEY, X, X)
    )
    two, four = (X, None), ((jnp.eye(3), jnp.eye(3)), (jnp.eye(3), None))
    like = "baseline must be like the "
    fails(TypeError, f"{like}arg.* 2 arrays", of_two(curvature.sampled_diagonal, two))
    fails(TypeError, f"{like}Hes.* 4 arrays", of_two(curvature.sampled_hessian, four))


def test_products_and_systems():
    hvp = lambda v, f=fun: lambda: curvature.hvp(f, (X,), v)
    fails(TypeError, "vector must be a tuple", hvp(X))
    fails(ValueError, r"vector\[0\] must have shape \[3\].*\[2\]", hvp((X[:2],)))
    fails(ValueError, "hvp needs an argument that varies", hvp((None,)))
    fails(TypeError, "hvp needs a function that returns one real", hvp((X,), jnp.sin))
    cg = lambda b=(X,), **k: lambda: curvature.conjugate_gradients(fun, (X,), b, **k)
    fails(TypeError, r"rhs\[0\] must have the dtype", cg((X.astype(jnp.float32),)))
    fails(ValueError, "maxiter must be at least 1", cg(maxiter=0))


def test_eigenvalues():
    top = lambda count, **k: (
        lambda: curvature.top_eigenvalues(fun, (X,), KEY, count, **k)
    )
    fails(ValueError, "k must be at most.*3; got 4", top(4))
    fails(ValueError, "k must be at least 1", top(0))
    fails(
        ValueError, "oversampling must be at least 0; got -1", top(2, oversampling=-1)
    )
    fails(ValueError, "maxiter must be at least 1", top(2, maxiter=0))
    fails(
        TypeError,
        r"key must be one PRNG key.*shape \[2\] and dtype key",
        lambda: curvature.top_eigenvalues(fun, (X,), jax.random.split(KEY), 1),
    )


SOLVERS = {
    "conjugate_gradients": lambda t: curvature.conjugate_gradients(
        fun, (X,), (X,), tol=t
    ),
    "top_eigenvalues": lambda t: curvature.top_eigenvalues(fun, (X,), KEY, 1, tol=t),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_tolerances(name):
    call = lambda t: lambda: SOLVERS[name](t)
    for bad in (-1.0, np.float32(-1), jnp.array(-1.0), float("nan"), np.float64("nan")):
        fails(ValueError, "tol must be at least 0; got (-1|nan)", call(bad))
    fails(ValueError, r"tol must be one number; got shape \[3\]", call(X))
    fails(TypeError, "tol must be of real numbers; got None", call(None))
    fails(TypeError, "tol must be real; got dtype complex", call(1j))


def test_a_legacy_key_is_one():
    key = jax.random.PRNGKey(0)
    for words in (key, np.asarray(key)):
        jax.eval_shape(lambda w=words: curvature.hutchinson_trace(fun, probes=2)(w, X))


def test_newton_step():
    estimate = curvature.Estimate(jnp.eye(2), jnp.eye(3))
    call = lambda: curvature.newton_step(fun, (X,), estimate)
    fails(ValueError, r"hessian.value must have shape \[3, 3\]; got \[2, 2\]", call)
    of = lambda hessian: lambda: curvature.newton_step(fun, (X,), hessian)
    for bad, got in ((jnp.eye(3), "an array"), (None, "NoneType")):
        fails(TypeError, f"hessian must be an Estimate.*; got {got}", of(bad))
    known = lambda h: of(curvature.Estimate(h, jnp.zeros((3, 3))))
    fails(TypeError, "hessian.value must be real; got dtype", known(1j * jnp.eye(3)))
    fails(TypeError, "hessian.value must be of real numbers; got 'h'", known("h"))
    fails(TypeError, "hessian.value must be like the Hessian.* 1 arrays", known(None))
