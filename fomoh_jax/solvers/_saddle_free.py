"""Newton's step with the absolute value of the curvature."""

import jax.numpy as jnp

from fomoh_jax._metric import in_metric, rounding
from fomoh_jax.solvers._flat import flat_step, no_reach, started
from fomoh_jax.solvers._protocol import Solver, guarded


def saddle_free() -> Solver:
    r"""Newton's step with the absolute value of the curvature.

    .. math:: \kappa = B\, |\Lambda|^{-1} B^\top V^\top \nabla f, \qquad
      B^\top V^\top V B = I, \quad B^\top V^\top H V B = \Lambda

    Along negative curvature it goes downhill as far as Newton's step would go up. The
    eigenvalues :math:`\Lambda` are taken in the metric :math:`V^\top V`, so that the
    step depends on the hyperplane alone and not on the directions that span it. For one
    direction it is FoMoH's :math:`\nabla f \cdot v / |v^\top H v|`. Where the curvature
    is zero to rounding, the model has no minimum, and the step goes downhill as far as
    steps before it have lowered the loss as predicted.

    Returns:
      A solver, whose state is a :class:`ReachState`.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> curvature = jnp.diag(jnp.array([2.0, -2.0]))
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0, 4.0]), curvature)
      >>> solver = solvers.saddle_free()
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)
      [1. 2.]

    References:
      Dauphin et al., *Identifying and attacking the saddle point problem in
      high-dimensional non-convex optimization*, 2014, arXiv:1406.2572; Cobb et al.,
      2024, arXiv:2408.10419, section 3 (FoMoH).
    """

    def solve(model, gram, state):
        eigenvalues, basis = in_metric(model.curvature, gram)
        size, slope = jnp.abs(eigenvalues), basis.T @ model.slope
        flat = size <= rounding(size)
        curved = jnp.where(flat, 0, slope / jnp.where(flat, 1, size))
        along, state = flat_step(state, model.value, slope, flat)
        coefficients = basis @ (curved + along)
        return coefficients, started(state, model, coefficients, along)

    return Solver(lambda k: no_reach(), guarded(solve))
