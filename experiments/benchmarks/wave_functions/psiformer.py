"""PsiFormer: von Glehn, Spencer and Pfau, 2023, arXiv:2211.13672."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.wave_functions import electrons
from experiments.benchmarks.wave_functions.determinants import Orbitals, log_of_sum


class PsiFormer(nn.Module):
    """``log |ψ|`` of positions ``[3N]``, by determinants of all electrons together.

    The sizes are the paper's.
    """

    width: int = 256
    heads: int = 4
    layers: int = 4
    determinants: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        r = x.reshape(-1, 3)
        differences, distances = electrons.to_nuclei(r)
        h = nn.Dense(self.width, use_bias=False)(_features(differences, distances))
        for _ in range(self.layers):
            normed = nn.LayerNorm()(h)
            h = h + nn.MultiHeadDotProductAttention(self.heads)(normed, normed)
            h = h + nn.tanh(nn.Dense(self.width)(nn.LayerNorm()(h)))
        halves = zip(jnp.split(h, 2), jnp.split(distances, 2))
        orbitals = [Orbitals(len(r), self.determinants)(h, d) for h, d in halves]
        return log_of_sum(jnp.concatenate(orbitals, axis=1)) + Jastrow()(r)


class Jastrow(nn.Module):
    """The cusps of pairs of equal and of opposite spin (eq. 7 and 8)."""

    @nn.compact
    def __call__(self, r: jax.Array) -> jax.Array:
        _, distances = electrons.between(r)
        spin = np.arange(len(r)) < len(r) // 2
        equal = spin[:, None] == spin
        cusps = 0.0
        for name, cusp, pairs in (("equal", 0.25, equal), ("opposite", 0.5, ~equal)):
            alpha = self.param(name, nn.initializers.ones, ())
            i, j = np.nonzero(np.triu(pairs, 1))
            cusps -= jnp.sum(cusp * alpha**2 / (alpha + distances[i, j]))
        return cusps


def _features(differences: jax.Array, distances: jax.Array) -> jax.Array:
    """The rescaled place of each electron beside each nucleus, and its spin."""
    n = len(distances)
    rescaled = differences * (jnp.log1p(distances) / distances)[..., None]
    spins = jnp.repeat(jnp.array([1.0, -1.0], distances.dtype), n // 2)[:, None]
    return jnp.concatenate([rescaled.reshape(n, -1), jnp.log1p(distances), spins], -1)
