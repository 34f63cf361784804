"""Residuals of the Allen–Cahn equation in D dimensions, and their training gradient.

The operator of physics-informed networks (Raissi, Perdikaris and Karniadakis, 2019):
``Δu + u - u³ - g`` of a network u at a batch of points.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import OURS, Contender, Contenders, Row

NAMES = OURS, "nested jvp", "jax.hessian", "jet", "folx"
DIMENSIONS = 2, 10, 50, 100
WIDTH, POINTS = 64, 256


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """Rows of residuals and of the gradient of their mean square, for each D."""
    width, points = (8, 4) if quick else (WIDTH, scale * POINTS)
    for dimension in (3,) if quick else DIMENSIONS:
        for name, of in QUANTITIES.items():
            make = functools.partial(contenders, of, dimension, width, points)
            yield Row(name, {"D": dimension}, make)


def contenders(of: Callable, dimension: int, width: int, points: int) -> Contenders:
    """Every way to the Laplacian of a tanh network of three hidden layers."""
    layers = workloads.dense_layers((dimension, width, width, width, 1))
    x, source = workloads.normal(60, points, dimension), workloads.normal(61, points)
    args = jax.device_put((layers, x, source))
    return {name: Contender(of(residuals(ways.TRACES[name])), args) for name in NAMES}


def residuals(trace: Callable) -> Callable:
    """The residuals ``[B]``, by one of ``ways.TRACES``."""

    def at_point(layers, x, source):
        u = lambda x: workloads.apply_dense(layers, x, jnp.tanh)[0]
        return trace(u, x, None) + u(x) - u(x) ** 3 - source

    return jax.vmap(at_point, in_axes=(None, 0, 0))


def with_gradient(residuals: Callable) -> Callable:
    """The mean square of the residuals and its gradient in the parameters."""
    return jax.value_and_grad(lambda *args: jnp.mean(residuals(*args) ** 2))


QUANTITIES = {
    "residual": lambda residuals: residuals,
    "residual and gradient": with_gradient,
}
