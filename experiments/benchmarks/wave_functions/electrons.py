"""Positions of electrons and nuclei, and distances between them.

The first half of the electrons has spin up, the other half spin down.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.workloads import normal

ELECTRONS_PER_NUCLEUS = 4


def chain(electrons: int) -> np.ndarray:
    """``[M, 3]`` nuclei of beryllium on a line, two bohr apart."""
    places = 2 * np.arange(electrons // ELECTRONS_PER_NUCLEUS, dtype=np.float32)
    return places[:, None] * np.eye(1, 3, dtype=np.float32)


def positions(batch: int, electrons: int) -> np.ndarray:
    """``[B, 3N]``: each electron near the next of the nuclei, by turns."""
    nuclei = chain(electrons)
    nearest = nuclei[np.arange(electrons) % len(nuclei)]
    return (nearest + normal(70, batch, electrons, 3)).reshape(batch, -1)


def to_nuclei(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Differences ``[N, M, 3]`` and distances ``[N, M]`` of electrons ``[N, 3]``."""
    differences = r[:, None] - jnp.asarray(chain(len(r)), r.dtype)
    return differences, jnp.linalg.norm(differences, axis=-1)


def between(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Differences ``[N, N, 3]`` and distances ``[N, N]`` of each two electrons."""
    differences = r[:, None] - r[None]
    itself = jnp.eye(len(r), dtype=r.dtype)
    return differences, off_diagonal_root(jnp.sum(differences**2, -1), itself)


def off_diagonal_root(squares: jax.Array, itself: jax.Array) -> jax.Array:
    """Square roots, and zero on the diagonal, where the root has no derivative."""
    return jnp.sqrt(squares + itself) * (1 - itself)
