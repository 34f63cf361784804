"""Orbitals of a network's features, and the sum of their determinants."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class Orbitals(nn.Module):
    r"""Linear functions of features times envelopes that decay from the nuclei.

    .. math:: \phi_{ki}(r_j) = (w_{ki} \cdot h_j + g_{ki})
      \sum_m \pi_{kim} e^{-\sigma_{kim} |r_j - R_m|}
    """

    count: int
    determinants: int

    @nn.compact
    def __call__(self, features: jax.Array, distances: jax.Array) -> jax.Array:
        """``[K, N, count]`` from ``[N, width]`` and distances to nuclei ``[N, M]``."""
        total = self.determinants * self.count
        shape = distances.shape[-1], total
        decay = self.param("decay", nn.initializers.ones, shape)
        weight = self.param("weight", nn.initializers.ones, shape)
        envelopes = jnp.sum(jnp.exp(-distances[..., None] * decay) * weight, axis=1)
        return by_determinant(nn.Dense(total)(features) * envelopes, self.determinants)


def by_determinant(orbitals: jax.Array, determinants: int) -> jax.Array:
    """``[N, K · count]`` as ``[K, N, count]``."""
    return jnp.moveaxis(orbitals.reshape(len(orbitals), determinants, -1), 1, 0)


def log_of_sum(*matrices: jax.Array) -> jax.Array:
    r"""``log Σ_k Π_s det A_ks`` of stacks ``[K, n, n]``, complex if they are.

    For real matrices it is the logarithm of the modulus.
    """
    signs, logs = zip(*map(jnp.linalg.slogdet, matrices))
    sign, log = math.prod(signs), sum(logs)
    largest = jnp.max(log)
    total = jnp.sum(sign * jnp.exp(log - largest))
    modulus = total if jnp.iscomplexobj(total) else jnp.abs(total)
    return jnp.log(modulus) + largest
