"""Levenberg's damped Newton step."""

import jax
import jax.numpy as jnp

from fomoh_jax._gram_metric import in_metric
from fomoh_jax.solvers._solver import Descent, Step


def damped(damping: float = 1e-3) -> Descent:
    r"""Levenberg's damped Newton step, always downhill.

    .. math:: \kappa = (V^\top H V + \delta\, V^\top V)^{-1}\, V^\top \nabla f, \qquad
      \delta = \mathrm{damping} / \eta + \max(0, -\lambda_{\min})

    for a step of size :math:`\eta`, the one that the search chooses. See
    :func:`fomoh_jax.solvers.damped`. With ``searches.gain_ratio()`` this is the method
    of Levenberg and Marquardt.

    Args:
      damping: positive, in units of the Hessian.

    Returns:
      A descent.

    Raises:
      ValueError: if ``damping`` is a number that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel
      >>> from fomoh_jax.solvers import Solver, descents, searches
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0]), jnp.array([[2.0]]))
      >>> solver = Solver(descents.damped(1.0), searches.constant(0.5))
      >>> print(solver.solve(model, jnp.eye(1), solver.init(1))[0])
      [0.5]

    References:
      Levenberg, *A method for the solution of certain non-linear problems in least
      squares*, 1944; Marquardt, *An algorithm for least-squares estimation of nonlinear
      parameters*, 1963.
    """
    if not isinstance(damping, jax.Array) and not damping > 0:
        raise ValueError(f"damping must be positive; got {damping}.")

    def step(model, gram, size, last, state):
        eigenvalues, basis = in_metric(model.curvature, gram)
        shift = damping / size + jnp.maximum(0, -jnp.min(eigenvalues))
        along = (basis.T @ model.slope) / (eigenvalues + shift)
        return Step(basis @ along, jnp.linalg.norm(along), size), state

    return Descent(step)
