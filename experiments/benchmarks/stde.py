"""Residuals in as many dimensions as a hundred thousand, from 16 random coordinates.

The table of Shi, Hu, Lin and Kawaguchi, *Stochastic Taylor derivative estimator*, 2024,
arXiv:2412.00088: Allen–Cahn and sine-Gordon equations in the unit ball, networks of
four hidden layers of 128 that vanish on the sphere, at 100 points.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from experiments.benchmarks import residual, ways, workloads
from experiments.benchmarks.measurement import OURS, Contender, Contenders, Row
from fomoh_jax.curvature import sampled_trace

DIMENSIONS = 100, 1_000, 10_000, 100_000
COORDINATES, WIDTH, POINTS = 16, 128, 100
TERMS = {
    "Allen–Cahn": lambda u: u - u**3,
    "sine-Gordon": jnp.sin,
}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """Rows for both equations, the residuals alone and with their gradient, for each D.

    A quick row draws all the coordinates, so that contenders agree.
    """
    sizes = (3, 8, 4) if quick else (COORDINATES, WIDTH, scale * POINTS)
    for equation, term in TERMS.items():
        for name, of in residual.QUANTITIES.items():
            for dimension in (3,) if quick else DIMENSIONS:
                make = functools.partial(contenders, term, of, dimension, *sizes)
                yield Row(f"{equation}, {name}", {"D": dimension}, make)


def contenders(
    term: Callable, of: Callable, dimension: int, n: int, width: int, points: int
) -> Contenders:
    """Estimates of the Laplacian by ours, and by jet as in the paper."""
    layers = workloads.dense_layers((dimension, *[width] * 4, 1))
    x = workloads.normal(60, points, dimension)
    x /= 2 * jnp.linalg.norm(x, axis=1, keepdims=True)
    args = jax.device_put((layers, x, workloads.normal(61, points), jax.random.key(0)))
    exact = n == dimension  # otherwise each draws coordinates of its own
    return {
        name: Contender(of(residuals(way, term, n)), args, agrees=exact)
        for name, way in WAYS.items()
    }


def residuals(estimate: Callable, term: Callable, n: int) -> Callable:
    """The residuals ``[B]``, all at the coordinates that a key draws."""

    def at_point(layers, x, source, key):
        def u(x):
            return (1 - jnp.sum(x**2)) * workloads.apply_dense(layers, x, jnp.tanh)[0]

        return estimate(u, x, key, n) + term(u(x)) - source

    return jax.vmap(at_point, in_axes=(None, 0, 0, None))


def ours(u: Callable, x: jax.Array, key: jax.Array, n: int) -> jax.Array:
    """The estimate from one pass along all the coordinates."""
    return sampled_trace(u, coordinates=n)(key, x).value


def by_jet(u: Callable, x: jax.Array, key: jax.Array, n: int) -> jax.Array:
    """A Taylor polynomial of second order along each of the unit vectors."""
    index = jax.random.choice(key, x.size, (n,), replace=False)
    along = lambda i: ways.curvature_by_jet(
        u, x, jax.nn.one_hot(i, x.size, dtype=x.dtype)
    )
    return x.size * jnp.mean(jax.vmap(along)(index))


WAYS = {OURS: ours, "jet": by_jet}
