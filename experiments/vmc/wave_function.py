r"""A symmetric wave function with the right cusps, for any weights of its network.

.. math::
  \log ψ = \sum_i \text{envelope}(r_i) + \frac{c\, r_{12}}{1 + r_{12}}
    + \sum_i \text{network}(s(r_i), s(r_{j \neq i}), s(r_{12})),
  \qquad s(r) = \frac{r^2}{1 + r}

Envelope and second term have the slopes in :math:`r_i` and :math:`r_{12}` that cancel
the infinities of the potential, and :math:`s` has none at zero, so that the network
leaves them alone. Its sum over the electrons does not change when they are exchanged.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.pinn.problem import initialise
from experiments.vmc.systems import System, distances


def initial_parameters(key: jax.Array, hidden: Sequence[int]) -> Any:
    """Weights and biases, a pair for each layer; the last layer is zero."""
    *layers, (weight, bias) = initialise(key, (3, *hidden, 1))
    return [*layers, (jnp.zeros_like(weight), bias)]


def log_psi(system: System, params: Any, x: jax.Array) -> jax.Array:
    """The logarithm of ψ, which is not normalised, of a configuration ``[2, D]``."""
    radii, distance = distances(x)
    cusp = system.repulsion_slope * distance / (1 + distance)
    return jnp.sum(system.envelope(radii)) + cusp + jastrow(params, radii, distance)


def jastrow(params: Any, radii: jax.Array, distance: jax.Array) -> jax.Array:
    """The network's part."""
    own, other, between = map(
        without_slope, (radii, radii[::-1], jnp.broadcast_to(distance, (2,)))
    )
    *layers, (weight, bias) = params
    y = jnp.stack([own, other, between], axis=1)  # a row for each electron
    for w, b in layers:
        y = jnp.tanh(y @ w + b)
    return jnp.sum(y @ weight + bias)


def without_slope(r: jax.Array) -> jax.Array:
    """Like r² where it is small, and like r where it is large."""
    return r**2 / (1 + r)
