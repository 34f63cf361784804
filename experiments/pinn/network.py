"""The network that stands for the solution, and its loss."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.pinn.equations import Equation


def initialise(key: jax.Array, widths: Sequence[int], dtype: str) -> Any:
    """Weights that keep the variance, and zero biases, a pair for each layer."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(k, (a, b), dtype) / a**0.5, jnp.zeros(b, dtype))
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
      trace: a way to the operator, one of ``traces.WAYS``.

    Returns:
      ``loss(params, points, source)``.
    """

    def operator(params, x):
        weights = None if equation.weights is None else equation.weights(x)
        return trace(lambda x: network(params, x), x, weights)

    def loss(params, points, source):
        values = jax.vmap(operator, in_axes=(None, 0))(params, points)
        return jnp.mean((values - source) ** 2) / jnp.mean(source**2)

    return loss
