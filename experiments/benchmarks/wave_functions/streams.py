"""Layers that exchange between electrons and their pairs."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Streams(nn.Module):
    """The one- and two-electron streams of FermiNet (Pfau et al., 2020, eq. 5 and 6).

    Each layer of the one-electron stream sees the means over either spin of itself and
    of the electron's pairs, and has a skip connection where the width stays.
    """

    width: int = 256
    pair_width: int = 32
    layers: int = 4

    @nn.compact
    def __call__(self, one: jax.Array, two: jax.Array) -> jax.Array:
        """``[N, width]`` from features ``[N, a]``, and ``[N, N, b]`` of pairs."""
        for layer in range(self.layers):
            if layer:
                two = _with_skip(two, nn.tanh(nn.Dense(self.pair_width)(two)))
            one = _with_skip(one, nn.tanh(nn.Dense(self.width)(_mixed(one, two))))
        return one


def _mixed(one: jax.Array, two: jax.Array) -> jax.Array:
    means = (jnp.mean(half, axis=0) for half in jnp.split(one, 2))
    everywhere = [jnp.broadcast_to(mean, one.shape) for mean in means]
    of_pairs = [jnp.mean(half, axis=1) for half in jnp.split(two, 2, axis=1)]
    return jnp.concatenate([one, *everywhere, *of_pairs], axis=-1)


def _with_skip(before: jax.Array, after: jax.Array) -> jax.Array:
    return before + after if before.shape == after.shape else after
