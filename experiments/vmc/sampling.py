"""Metropolis sampling of ψ², by many walkers at once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

ACCEPTANCE = 0.5  # what the width is adapted to


class Walkers(NamedTuple):
    """Independent random walks.

    Attributes:
      positions: ``[walkers, 2, D]``.
      width: standard deviation of a proposed move, in each coordinate.
    """

    positions: jax.Array
    width: jax.Array


def start(key: jax.Array, count: int, dimension: int) -> Walkers:
    """Standard normal positions."""
    positions = jax.random.normal(key, (count, 2, dimension))
    return Walkers(positions, jnp.full((), 0.5, positions.dtype))


def walk(
    log_psi: Callable, key: jax.Array, walkers: Walkers, moves: int
) -> tuple[Walkers, jax.Array]:
    """Moves of both electrons together, each accepted or not by Metropolis's rule.

    Args:
      log_psi: of one configuration.
      key: of the moves.
      walkers: where they are.
      moves: how many.

    Returns:
      The walkers after them, and the fraction of moves that were accepted.
    """
    log_psi = jax.vmap(log_psi)

    def move(carry, key):
        x, old = carry
        propose, decide = jax.random.split(key)
        proposed = x + walkers.width * jax.random.normal(propose, x.shape, x.dtype)
        new = log_psi(proposed)
        # The density is ψ², hence the two.
        threshold = jnp.log(jax.random.uniform(decide, new.shape, new.dtype)) / 2
        accepted = threshold < new - old
        x = jnp.where(accepted[:, None, None], proposed, x)
        return (x, jnp.where(accepted, new, old)), jnp.mean(accepted)

    x = walkers.positions
    (x, _), accepted = lax.scan(move, (x, log_psi(x)), jax.random.split(key, moves))
    return walkers._replace(positions=x), jnp.mean(accepted)


def adapted(walkers: Walkers, acceptance: jax.Array) -> Walkers:
    """Wider moves if more than half were accepted, narrower ones if fewer.

    A width that depends on the walk breaks detailed balance; do not adapt it while
    measuring.
    """
    factor = jnp.exp(0.2 * (acceptance - ACCEPTANCE))
    return walkers._replace(width=walkers.width * factor)
