r"""Elliptic equations in the unit ball with known solutions, and a network for them.

.. math:: \sum_{ij} C_{ij}(x) \frac{\partial^2 u}{\partial x_i \partial x_j} = f(x)
  \quad (|x| < 1), \qquad u(x) = 0 \quad (|x| = 1)
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.ways import whole_hessian


class Equation(NamedTuple):
    """The operator of an equation.

    Attributes:
      title: for tables and figures.
      weights: ``C`` at a point, ``[D, D]``, symmetric and positive definite; None for
        the identity, of which the operator is the Laplacian.
    """

    title: str
    weights: Callable[[jax.Array], jax.Array | None]


def radial(x: jax.Array) -> jax.Array:
    """A diffusion of 0.1 across the radius and 0.1 + |x|² along it."""
    return 0.1 * jnp.eye(x.size, dtype=x.dtype) + jnp.outer(x, x)


EQUATIONS = {
    "poisson": Equation("Poisson", lambda x: None),
    "anisotropic": Equation("anisotropic", radial),
}


def solution(x: jax.Array) -> jax.Array:
    r""":math:`u(x) = (1 - |x|^2) \frac1D \sum_i \sin(πx_i + \cos πx_{i-1})`."""
    waves = jnp.sin(jnp.pi * x + jnp.cos(jnp.pi * jnp.roll(x, 1)))
    return (1 - x @ x) * jnp.mean(waves)


def source(equation: Equation, x: jax.Array) -> jax.Array:
    """The right-hand side, by ``jax.hessian``, which shares nothing with ours."""
    return whole_hessian(solution, x, equation.weights(x))


def points(key: jax.Array, count: int, dimension: int) -> jax.Array:
    """Uniform in the ball, ``[count, D]``."""
    angular, radius = jax.random.split(key)
    x = jax.random.normal(angular, (count, dimension))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return x * jax.random.uniform(radius, (count, 1)) ** (1 / dimension)


def initialise(key: jax.Array, widths: Sequence[int]) -> Any:
    """Weights that keep the variance, and zero biases, a pair for each layer."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b))
        for k, (a, b) in zip(keys, itertools.pairwise(widths))
    ]


def network(params: Any, x: jax.Array) -> jax.Array:
    """A tanh network of a point ``[D]``, zero on the boundary whatever its weights."""
    *hidden, (weight, bias) = params
    y = x
    for w, b in hidden:
        y = jnp.tanh(y @ w + b)
    return (1 - x @ x) * (y @ weight + bias)[0]


def make_loss(equation: Equation, trace: Callable) -> Callable:
    """The mean squared residual, relative to the mean square of the source.

    Args:
      equation: what the network should solve.
      trace: a way to the operator, one of ``ways.TRACES``.

    Returns:
      ``loss(params, points, source)``.
    """

    def operator(params, x):
        return trace(lambda x: network(params, x), x, equation.weights(x))

    def loss(params, points, source):
        values = jax.vmap(operator, in_axes=(None, 0))(params, points)
        return jnp.mean((values - source) ** 2) / jnp.mean(source**2)

    return loss
