"""Newton's step as the paper takes it, and the part of it that a size allows."""

import jax.numpy as jnp
import numpy as np

from fomoh_jax._gram_metric import length, rounding, unit_scale
from fomoh_jax.solvers._solver import Descent, Step


def newton(jitter: float = 1e-3, growth: float = 10.0, attempts: int = 5) -> Descent:
    r"""Newton's step, shortened.

    .. math:: \kappa = \min(\eta, 1)\, (V^\top H V + \delta I)^{-1}\, V^\top \nabla f

    for a step of size :math:`\eta`, the one that the search chooses, with the jitter
    :math:`\delta` of a singular system. See :func:`fomoh_jax.solvers.newton`.

    Args:
      jitter: first value of :math:`\delta` for a singular system; positive.
      growth: factor between attempts, more than 1.
      attempts: number of values tried, at least 1.

    Returns:
      A descent.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel
      >>> from fomoh_jax.solvers import Solver, descents, searches
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0]), jnp.array([[2.0]]))
      >>> solver = Solver(descents.newton(), searches.constant(0.5))
      >>> print(solver.solve(model, jnp.eye(1), solver.init(1))[0])
      [0.5]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3 (FoMoH-KD).
    """
    if not (jitter > 0 and growth > 1 and attempts >= 1):
        raise ValueError(
            "newton needs jitter > 0, growth > 1 and attempts >= 1; got "
            f"jitter={jitter}, growth={growth}, attempts={attempts}."
        )
    shifts = jitter * growth ** np.arange(attempts)

    def whole(slope, curvature, gram):
        # Judged for directions of unit length: a short one is not a singular one.
        unit = unit_scale(gram)
        # A direction that is zero, as one of a history that has yet to happen, takes
        # no part and makes nothing singular.
        scaled = unit[:, None] * curvature * unit[None]
        mean = jnp.mean(jnp.abs(jnp.diagonal(scaled)))
        absent = jnp.diag(jnp.where(unit == 0, mean, 0))
        eigenvalues, vectors = jnp.linalg.eigh(scaled + absent)
        size = jnp.abs(eigenvalues)
        regular = jnp.all(size > rounding(size))
        along = vectors.T @ (unit * slope) / jnp.where(regular, eigenvalues, 1)
        return jnp.where(regular, unit * (vectors @ along), jittered(slope, curvature))

    def jittered(slope, curvature):
        eigenvalues, vectors = jnp.linalg.eigh(curvature)
        shifted = eigenvalues[None] + jnp.asarray(shifts, eigenvalues.dtype)[:, None]
        size = jnp.abs(shifted)
        regular = jnp.all(size > rounding(size), axis=1)
        along = (vectors.T @ slope) / shifted[jnp.argmax(regular)]
        return jnp.where(jnp.any(regular), vectors @ along, slope)

    def step(model, gram, size, last, state):
        size = jnp.minimum(size, 1)
        coefficients = size * whole(model.slope, model.curvature, gram)
        return Step(coefficients, length(coefficients, gram), size), state

    return Descent(step)
