"""Descents, which choose a step on the hyperplane, given its size.

Each is a :class:`fomoh_jax.solvers.Descent`. Size 1 is the whole step; a smaller size
leads less far.

Example:
  >>> import jax.numpy as jnp
  >>> from fomoh_jax import QuadraticModel
  >>> from fomoh_jax.solvers import Solver, descents, searches
  >>> model = QuadraticModel(jnp.array(1.0), jnp.array([3.0]), jnp.array([[2.0]]))
  >>> for descent in (descents.newton(), descents.damped(1.0), descents.trust(0.5)):
  ...   solver = Solver(descent, searches.constant(1.0))
  ...   print(solver.solve(model, jnp.eye(1), solver.init(1))[0])
  [1.5]
  [1.]
  [0.5]
"""

from fomoh_jax.solvers.descents._levenberg import damped
from fomoh_jax.solvers.descents._newton_step import newton
from fomoh_jax.solvers.descents._saddle_free import saddle_free
from fomoh_jax.solvers.descents._trust import TrustState, trust
from fomoh_jax.solvers.descents._without_curvature import ReachState

__all__ = ["ReachState", "TrustState", "damped", "newton", "saddle_free", "trust"]
