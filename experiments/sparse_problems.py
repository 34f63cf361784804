"""Objectives that are sums of terms in few variables each, so that Hessians are sparse.

Indices and shapes are constants of a function, as :func:`fomoh_jax.sparse_hessian`
needs them to find while tracing which terms depend on what.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DURATION = 2.0  # seconds in which the pendulum swings up
GRAVITY = 9.81 / 2  # m/s² over a length of 2 m
DYNAMICS_WEIGHT = 1e3  # of the squared defects of the dynamics
END_WEIGHT = 1e3  # of the squared distance from the upright pendulum at rest
STRETCH = 0.3  # standard deviation of the logarithms of the springs' rest lengths


class Problem(NamedTuple):
    """A function to minimise.

    Attributes:
      fun: of a vector of ``D`` elements, a scalar.
      start: where to begin, ``[D]``, float64.
    """

    fun: Callable[[jax.Array], jax.Array]
    start: np.ndarray


def minimal_surface(cells: int) -> Problem:
    r"""The area of a surface over the unit square whose heights at the rim are given.

    .. math:: \sum_\text{cells} h^2 \sqrt{1 + |\nabla z|^2}, \quad
        |\nabla z|^2 = \frac{(z_{11} - z_{00})^2 + (z_{10} - z_{01})^2}{2 h^2}

    The unknowns are the heights inside, which are zero at the start (Averick et al.,
    The MINPACK-2 test problem collection, 1992, section 4.3).

    Args:
      cells: on each side; there are ``(cells - 1)²`` unknowns.
    """
    axis = np.linspace(0, 1, cells + 1)
    rim = np.sin(2 * np.pi * axis)[:, None] + np.cos(np.pi * axis)
    rim[1:-1, 1:-1] = 0

    def area(x: jax.Array) -> jax.Array:
        inside = x.reshape(cells - 1, cells - 1)
        z = jnp.asarray(rim, x.dtype) + jnp.pad(inside, 1)
        one, other = z[1:, 1:] - z[:-1, :-1], z[1:, :-1] - z[:-1, 1:]
        slopes = (one**2 + other**2) * (cells**2 / 2)
        return jnp.sum(jnp.sqrt(1 + slopes)) / cells**2

    return Problem(area, np.zeros((cells - 1) ** 2))


def spring_graph(points: int, edges: int) -> Problem:
    r"""The energy of springs between points in the plane.

    .. math:: \frac{1}{2} \sum_{(i, j)} (|p_i - p_j| - \ell_{ij})^2

    The springs are between the pairs that are closest at the start, where the points
    are random in the unit square. Their rest lengths are other than the distances.

    Args:
      points: of two coordinates each.
      edges: the number of springs.
    """
    generator = np.random.default_rng(0)
    start = generator.uniform(size=(points, 2))
    first, second = np.triu_indices(points, 1)
    distances = np.linalg.norm(start[first] - start[second], axis=1)
    closest = np.argsort(distances)[:edges]
    first, second, distances = first[closest], second[closest], distances[closest]
    rest = distances * np.exp(STRETCH * generator.normal(size=edges))

    def energy(x: jax.Array) -> jax.Array:
        places = x.reshape(points, 2)
        lengths = jnp.linalg.norm(places[first] - places[second], axis=1)
        return jnp.sum((lengths - jnp.asarray(rest, x.dtype)) ** 2) / 2

    return Problem(energy, start.ravel())


def optimal_control(steps: int) -> Problem:
    r"""Swing a pendulum up, by direct transcription.

    .. math:: \sum_t \frac{\Delta}{2} u_t^2 + \frac{w}{2 \Delta}
        |s_{t+1} - s_t - \Delta f(\tfrac{s_t + s_{t+1}}{2}, u_t)|^2
        + \frac{w'}{2} |s_T - s^*|^2

    A state has an angle and its velocity; the dynamics are
    :math:`f(s, u) = (\omega, u - g \sin \theta)`, by the midpoint rule. The unknowns
    are torques and states of every time step, in the order of time, so that the Hessian
    is banded. The first state is given; at the start the angle grows evenly.

    Args:
      steps: of time; there are ``3 * steps`` unknowns.
    """
    step = DURATION / steps
    hanging, upright = np.zeros((1, 2)), np.array([np.pi, 0.0])

    def cost(x: jax.Array) -> jax.Array:
        torques, later = jnp.split(x.reshape(steps, 3), (1,), axis=1)
        states = jnp.concatenate([jnp.asarray(hanging, x.dtype), later])
        angles, velocities = ((states[1:] + states[:-1]) / 2).T
        slopes = jnp.stack([velocities, torques[:, 0] - GRAVITY * jnp.sin(angles)], 1)
        defects = (states[1:] - states[:-1]) / step - slopes
        miss = states[-1] - jnp.asarray(upright, x.dtype)
        running = jnp.sum(torques**2) + DYNAMICS_WEIGHT * jnp.sum(defects**2)
        return (step * running + END_WEIGHT * jnp.sum(miss**2)) / 2

    angles = np.pi * np.arange(1, steps + 1) / steps
    velocities = np.full(steps, np.pi / DURATION)
    start = np.stack([np.zeros(steps), angles, velocities], axis=1)
    return Problem(cost, start.ravel())
