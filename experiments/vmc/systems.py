r"""Two electrons in a singlet, whose ground-state energy is known, in Hartree's units.

.. math::
  H = -\frac12 (\nabla_1^2 + \nabla_2^2) + V(r_1) + V(r_2) + \frac{1}{r_{12}}

A singlet's spatial wave function is symmetric, so that it has no nodes in its ground
state: it is written as :math:`e^{\text{something}}`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fomoh_jax

LogPsi = Callable[[jax.Array], jax.Array]  # of one configuration, [2, D]


class System(NamedTuple):
    """Two electrons that repel each other in a field around the origin.

    Attributes:
      title: for tables and figures.
      dimension: of the space, D.
      reference: the energy of the ground state, in hartree.
      potential: ``V(r)``, of each radius.
      envelope: the logarithm of one electron's ground state in that field, of its
        radius; it has the cusp at the nucleus, if there is one.
    """

    title: str
    dimension: int
    reference: float
    potential: Callable[[jax.Array], jax.Array]
    envelope: Callable[[jax.Array], jax.Array]

    @property
    def repulsion_slope(self) -> float:
        """The slope of log ψ in the distance where two electrons meet (Kato's cusp)."""
        return 1 / (self.dimension - 1)


SYSTEMS = {
    # Taut, Two electrons in an external oscillator potential, Phys. Rev. A 48 (1993).
    "dot": System(
        title="quantum dot, ω = 1",
        dimension=2,
        reference=3.0,
        potential=lambda r: r**2 / 2,
        envelope=lambda r: -(r**2) / 2,
    ),
    # Pekeris, Ground state of two-electron atoms, Phys. Rev. 112 (1958).
    "helium": System(
        title="helium",
        dimension=3,
        reference=-2.903724,
        potential=lambda r: -2 / r,
        envelope=lambda r: -2 * r,
    ),
}


def distances(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The radii ``[2]`` and the distance of the electrons, of a configuration."""
    return jnp.linalg.norm(x, axis=1), jnp.linalg.norm(x[0] - x[1])


def potential_energy(system: System, x: jax.Array) -> jax.Array:
    """The potential energy of a configuration."""
    radii, distance = distances(x)
    return jnp.sum(system.potential(radii)) + 1 / distance


def kinetic_energy(log_psi: LogPsi, x: jax.Array) -> jax.Array:
    r"""The local one, :math:`-\frac12 (\Delta \log ψ + |\nabla \log ψ|^2)`."""
    _, gradient, laplacian = fomoh_jax.value_grad_and_laplacian(log_psi)(x)
    return -(laplacian + jnp.sum(gradient**2)) / 2


def local_energy(system: System, log_psi: LogPsi, x: jax.Array) -> jax.Array:
    """``(H ψ / ψ)(x)``; where ψ is an eigenstate, its energy at every point."""
    return kinetic_energy(log_psi, x) + potential_energy(system, x)
