"""FermiNet: Pfau, Spencer, Matthews and Foulkes, 2020, arXiv:1909.02487."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.wave_functions import electrons
from experiments.benchmarks.wave_functions.determinants import Orbitals, log_of_sum
from experiments.benchmarks.wave_functions.streams import Streams


class FermiNet(nn.Module):
    """``log |ψ|`` of positions ``[3N]``, by a determinant for each spin.

    The sizes are the paper's, the envelopes isotropic as in its successors.
    """

    width: int = 256
    pair_width: int = 32
    layers: int = 4
    determinants: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        r = x.reshape(-1, 3)
        differences, distances = electrons.to_nuclei(r)
        one = jnp.concatenate([differences, distances[..., None]], axis=-1)
        pair_differences, pair_distances = electrons.between(r)
        two = jnp.concatenate([pair_differences, pair_distances[..., None]], axis=-1)
        streams = Streams(self.width, self.pair_width, self.layers)
        features = streams(one.reshape(len(r), -1), two)
        halves = zip(jnp.split(features, 2), jnp.split(distances, 2))
        orbitals = [Orbitals(len(h), self.determinants)(h, d) for h, d in halves]
        return log_of_sum(*orbitals)
