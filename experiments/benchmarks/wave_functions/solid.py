"""Electrons of a solid: Li, Li and Chen, 2022, arXiv:2203.15472 (DeepSolid)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.wave_functions import electrons
from experiments.benchmarks.wave_functions.determinants import (
    by_determinant,
    log_of_sum,
)
from experiments.benchmarks.wave_functions.streams import Streams

TWIST = 0.25  # of the boundary condition, in reciprocal lattice vectors


class Solid(nn.Module):
    """The complex ``log ψ`` of positions ``[3N]`` in a periodic cubic cell.

    FermiNet's streams over periodic features; plane waves for envelopes.
    """

    length: float = 6.0
    width: int = 256
    pair_width: int = 32
    layers: int = 4
    determinants: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        phases = 2 * np.pi / self.length * x.reshape(-1, 3)
        one = _waves(phases)
        differences = phases[:, None] - phases[None]
        two = jnp.concatenate([_waves(differences), _distances(differences)], axis=-1)
        features = Streams(self.width, self.pair_width, self.layers)(one, two)
        halves = zip(jnp.split(features, 2), jnp.split(phases, 2))
        return log_of_sum(*(self._orbitals(*half) for half in halves))

    def _orbitals(self, features: jax.Array, phases: jax.Array) -> jax.Array:
        """``[K, n, n]``: complex networks times ``exp(i k·r)``."""
        n = len(phases)
        parts = nn.Dense(2 * self.determinants * n)(features)
        networks = lax.complex(*jnp.split(parts, 2, axis=-1))
        orbitals = by_determinant(networks, self.determinants)
        return orbitals * jnp.exp(1j * (phases @ _wave_vectors(n, phases.dtype)))


def _waves(phases: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


def _distances(differences: jax.Array) -> jax.Array:
    """``[N, N, 1]`` between points on circles, periodic and smooth."""
    itself = jnp.eye(len(differences), dtype=differences.dtype)
    squares = jnp.sum(2 - 2 * jnp.cos(differences), axis=-1)
    return electrons.off_diagonal_root(squares, itself)[..., None]


def _wave_vectors(count: int, dtype: jnp.dtype) -> jax.Array:
    """``[3, count]``, those of the lowest energy."""
    grid = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3) + TWIST
    order = np.argsort((grid**2).sum(-1), kind="stable")
    return jnp.asarray(grid[order[:count]].T, dtype)
