"""Solvers with no memory: Newton's step, and the damped one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fomoh_jax._metric import in_metric, rounding, unit_scale
from fomoh_jax.solvers._protocol import Solver, guarded


def newton(jitter: float = 1e-3, growth: float = 10.0, attempts: int = 5) -> Solver:
    r"""Newton's step on the hyperplane, the paper's method.

    .. math:: \kappa = (V^\top H V + \delta I)^{-1}\, V^\top \nabla f

    where the jitter :math:`\delta` is zero unless the system is singular, and then the
    first of ``jitter``, ``jitter * growth``, … that makes it regular; if ``attempts``
    of them do not, :math:`\kappa = V^\top \nabla f`. That is what the reference
    implementation does when an inversion raises; here the eigenvalues tell, so that it
    works under ``jit``: a system is singular when, with the directions scaled to unit
    length, an eigenvalue is zero to rounding,
    :math:`|\lambda| \le k\, \epsilon \max |\lambda|`.

    Where the curvature is negative this steps uphill, as Newton's method does.

    Args:
      jitter: first value added to the eigenvalues of a singular system, in units of
        the curvature ``v_iᵀ H v_j``; positive.
      growth: factor between attempts, more than 1.
      attempts: number of values tried, at least 1.

    Returns:
      A solver.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0, 4.0]), 2 * jnp.eye(2))
      >>> solver = solvers.newton()
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)
      [1. 2.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3 (FoMoH-KD).
    """
    if not (jitter > 0 and growth > 1 and attempts >= 1):
        raise ValueError(
            "newton needs jitter > 0, growth > 1 and attempts >= 1; got "
            f"jitter={jitter}, growth={growth}, attempts={attempts}."
        )
    shifts = jitter * growth ** np.arange(attempts)

    def solve(slope, curvature, gram):
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

    return _stateless(solve)


def damped(damping: float = 1e-3) -> Solver:
    r"""Levenberg's damped Newton step, always downhill.

    .. math:: \kappa = (V^\top H V + \delta\, V^\top V)^{-1}\, V^\top \nabla f, \qquad
      \delta = \mathrm{damping} + \max(0, -\lambda_{\min})

    This is Newton's step for :math:`H + \delta I` on the hyperplane. The shift is
    raised by the most negative eigenvalue :math:`\lambda_{\min}` of the curvature in
    the metric :math:`V^\top V`, so that no eigenvalue is below ``damping``.

    Args:
      damping: positive, in units of the Hessian.

    Returns:
      A solver.

    Raises:
      ValueError: if ``damping`` is a number that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0, 4.0]), 2 * jnp.eye(2))
      >>> solver = solvers.damped(2.0)
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)
      [0.5 1. ]

    References:
      Levenberg, *A method for the solution of certain non-linear problems in least
      squares*, 1944.
    """
    if not isinstance(damping, jax.Array) and not damping > 0:
        raise ValueError(f"damping must be positive; got {damping}.")

    def solve(slope, curvature, gram):
        eigenvalues, basis = in_metric(curvature, gram)
        shift = damping + jnp.maximum(0, -jnp.min(eigenvalues))
        return basis @ ((basis.T @ slope) / (eigenvalues + shift))

    return _stateless(solve)


def _stateless(solve: Callable) -> Solver:
    """A solver with no memory, of ``solve(slope, curvature, gram)``."""

    def without_state(model, gram, state):
        return solve(model.slope, model.curvature, gram), state

    return Solver(lambda k: (), guarded(without_state))
