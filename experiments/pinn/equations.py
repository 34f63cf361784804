r"""Elliptic equations in the unit ball whose solutions are known.

.. math:: \sum_{ij} C_{ij}(x) \frac{\partial^2 u}{\partial x_i \partial x_j} = f(x)
  \quad (|x| < 1), \qquad u(x) = 0 \quad (|x| = 1)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Scalar = Callable[[jax.Array], jax.Array]  # a function of a point [D]


class Equation(NamedTuple):
    """The operator of an equation.

    Attributes:
      title: for tables and figures.
      weights: ``C`` at a point, ``[D, D]``, symmetric and positive definite; None for
        the identity, of which the operator is the Laplacian.
    """

    title: str
    weights: Callable[[jax.Array], jax.Array] | None


def radial(x: jax.Array) -> jax.Array:
    """A diffusion of 0.1 across the radius and 0.1 + |x|² along it."""
    return 0.1 * jnp.eye(x.size, dtype=x.dtype) + jnp.outer(x, x)


EQUATIONS = {
    "poisson": Equation("Poisson", None),
    "anisotropic": Equation("anisotropic", radial),
}


def solution(x: jax.Array) -> jax.Array:
    r""":math:`u(x) = (1 - |x|^2) \frac1D \sum_i \sin(πx_i + \cos πx_{i-1})`."""
    waves = jnp.sin(jnp.pi * x + jnp.cos(jnp.pi * jnp.roll(x, 1)))
    return (1 - x @ x) * jnp.mean(waves)


def source(equation: Equation, x: jax.Array) -> jax.Array:
    """The right-hand side, by ``jax.hessian``, which shares nothing with ours."""
    hessian = jax.hessian(solution)(x)
    if equation.weights is None:
        return jnp.trace(hessian)
    return jnp.sum(equation.weights(x) * hessian)


def points(key: jax.Array, count: int, dimension: int, dtype: str) -> jax.Array:
    """Uniform in the ball, ``[count, D]``."""
    angular, radius = jax.random.split(key)
    x = jax.random.normal(angular, (count, dimension), dtype)
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return x * jax.random.uniform(radius, (count, 1), dtype) ** (1 / dimension)
