"""Small functions whose Hessian ``jax.hessian`` gives, and statistics of estimates."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tests.reference import normal

PRIMALS = {"b": normal(2), "w": normal(2, 2, seed=1)}, jnp.array([1, 3])


def wave(params, powers):
    """Of a tree, and of integers, which are held fixed; no diagonal Hessian."""
    h = jnp.sin(params["w"] @ params["b"]) + params["b"] ** powers
    return jnp.sum(h * params["b"]) + jnp.exp(jnp.sum(params["w"]) / 4)


def flat_hessian(fun, params, *rest):
    """``[D, D]`` and ``[D]``: the Hessian and the gradient, and back to the tree."""
    flat, unravel = ravel_pytree(params)
    of_flat = lambda x: fun(unravel(x), *rest)
    return jax.hessian(of_flat)(flat), jax.grad(of_flat)(flat), unravel


HESSIAN, GRADIENT, UNRAVEL = flat_hessian(wave, *PRIMALS)
SIZE = len(GRADIENT)
DIAGONAL = jnp.diagonal(HESSIAN)


def symmetric(eigenvalues, seed=0):
    """A matrix of these eigenvalues."""
    size = len(eigenvalues)
    axes = jnp.linalg.qr(normal(size, size, seed=seed))[0]
    return (axes * jnp.asarray(eigenvalues)) @ axes.T


def quadratic(matrix):
    return lambda x: x @ matrix @ x / 2


def repeat(estimate, count=4000):
    """An estimate with many keys: its values and standard errors, ``[count, …]``."""
    keys = jax.random.split(jax.random.key(0), count)
    flat = lambda key: [ravel_pytree(part)[0] for part in estimate(key)]
    return jax.jit(lambda keys: jax.lax.map(flat, keys))(keys)


def assert_unbiased(values, expected):
    """The mean is as near as that of so many samples may be: 4.5 of its deviations."""
    error = np.std(values, axis=0, ddof=1) / len(values) ** 0.5
    assert np.all(np.abs(np.mean(values, axis=0) - expected) < 4.5 * error + 1e-12)


def assert_variance(values, errors, expected, rtol):
    """What is measured, what the estimate says of itself, and the closed form."""
    np.testing.assert_allclose(np.var(values, axis=0, ddof=1), expected, rtol=rtol)
    np.testing.assert_allclose(np.mean(errors**2, axis=0), expected, rtol=rtol)
