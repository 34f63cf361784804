"""Scalar functions of one vector whose Hessians people take, and their arguments."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp

from experiments.benchmarks import workloads
from experiments.rosenbrock import rosenbrock

EXAMPLES = 512
OBSERVATIONS = 64
JITTER = 1e-2  # of variance beside the fitted noise, so that float32 is enough


class Objective(NamedTuple):
    """A function of a vector, and its other arguments.

    Attributes:
      fun: ``fun(x, *data)``, a scalar.
      data: makes ``data`` for a number of dimensions of ``x``.
    """

    fun: Callable
    data: Callable[[int], tuple]


def logistic_loss(x: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean of ``log(1 + exp(-y w·a))`` with labels ±1, and a ridge."""
    return jnp.mean(jnp.logaddexp(0, -labels * (inputs @ x))) + 1e-3 * x @ x


def log_sum_exp(x: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
    """The logarithm of a sum of exponentials of an affine map."""
    return logsumexp(matrix @ x + offset)


def network(activation: Callable) -> Callable:
    """A network of dense layers as a function of its inputs."""
    return lambda x, layers: workloads.apply_dense(layers, x, activation)[0]


def marginal_likelihood(x: jax.Array, places: jax.Array, y: jax.Array) -> jax.Array:
    """The negative log marginal likelihood of a Gaussian process with an RBF kernel.

    ``x`` has the logarithms of amplitude, noise and one length for each input
    (Rasmussen and Williams, 2006, eq. 5.1 and 5.8).
    """
    amplitude, noise, lengths = jnp.split(jnp.exp(2 * x), (1, 2))
    difference = places[:, None] - places
    squares = jnp.sum(difference**2 / lengths, axis=-1)
    diagonal = (noise + JITTER) * jnp.eye(len(y), dtype=x.dtype)
    factor = jnp.linalg.cholesky(amplitude * jnp.exp(-squares / 2) + diagonal)
    whitened = solve_triangular(factor, y, lower=True)
    return whitened @ whitened / 2 + jnp.sum(jnp.log(jnp.diag(factor)))


def _layers(dimension: int) -> tuple:
    return (workloads.dense_layers((dimension, 64, 64, 1)),)


def _examples(dimension: int) -> tuple:
    labels = np.sign(workloads.normal(62, EXAMPLES))
    return workloads.normal(61, EXAMPLES, dimension), labels


def _observations(dimension: int) -> tuple:
    places = workloads.normal(61, OBSERVATIONS, dimension - 2)
    return places, workloads.normal(62, OBSERVATIONS)


OBJECTIVES = {
    "logistic regression": Objective(logistic_loss, _examples),
    "tanh network": Objective(network(jnp.tanh), _layers),
    "gelu network": Objective(network(jax.nn.gelu), _layers),
    "Gaussian process": Objective(marginal_likelihood, _observations),
    "log-sum-exp": Objective(
        log_sum_exp,
        lambda d: (workloads.normal(61, 100, d) / d**0.5, workloads.normal(62, 100)),
    ),
    "Rosenbrock": Objective(rosenbrock, lambda d: ()),
}
