"""Newton's step with the absolute value of the curvature."""

import jax.numpy as jnp

from fomoh_jax._gram_metric import in_metric, rounding
from fomoh_jax.solvers._solver import Descent, Step
from fomoh_jax.solvers.descents._without_curvature import flat_step, no_reach


def saddle_free() -> Descent:
    r"""Newton's step with the absolute value of the curvature, damped and shortened.

    .. math:: \kappa = \sqrt\eta\; B \left(|\Lambda| + \left(1/\sqrt\eta - 1\right)
      \overline{|\Lambda|}\right)^{-1} B^\top V^\top \nabla f, \qquad
      B^\top V^\top V B = I, \quad B^\top V^\top H V B = \Lambda

    for a step of size :math:`\eta`, the one that the search chooses. This is half a
    damped step and half a shortened one: all of the step for
    :math:`\eta = 1`, beyond which no size leads, and :math:`\eta` times that for
    curvatures that are equal. It goes downhill on the model whatever the curvature.
    Where the curvature is zero to rounding, the step goes as far as those before it
    have lowered the loss as predicted, whatever the size; the state is a
    :class:`ReachState`.

    See :func:`fomoh_jax.solvers.saddle_free`.

    Returns:
      A descent.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel
      >>> from fomoh_jax.solvers import Solver, descents, searches
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0]), jnp.array([[-2.0]]))
      >>> solver = Solver(descents.saddle_free(), searches.constant(0.25))
      >>> print(solver.solve(model, jnp.eye(1), solver.init(1))[0])
      [0.25]

    References:
      Dauphin et al., *Identifying and attacking the saddle point problem in
      high-dimensional non-convex optimization*, 2014, arXiv:1406.2572.
    """

    def step(model, gram, size, last, reach):
        size = jnp.minimum(size, 1)
        eigenvalues, basis = in_metric(model.curvature, gram)
        slope, absolute = basis.T @ model.slope, jnp.abs(eigenvalues)
        kept = jnp.any(basis != 0, axis=0)
        mean = jnp.sum(jnp.where(kept, absolute, 0)) / jnp.maximum(
            jnp.sum(kept, dtype=absolute.dtype), 1
        )
        half = jnp.sqrt(size)
        damped = absolute + (1 / half - 1) * mean
        hidden = rounding(absolute)
        flat = (absolute <= hidden) & (damped <= hidden) | (damped == 0)
        curved = jnp.where(flat, 0, half * slope / jnp.where(flat, 1, damped))
        along, reach = flat_step(reach, last, model.value, slope, flat)
        step = curved + along
        return Step(basis @ step, jnp.linalg.norm(step), size), reach

    return Descent(step, no_reach)
