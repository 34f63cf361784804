"""Solvers of the k×k system of the hyperplane.

On ``θ - Vκ`` the quadratic model of the loss is ``f - κ·s + ½ κᵀ C κ`` with the slopes
``s = Vᵀ∇f`` and the curvature ``C = Vᵀ H V``. A solver chooses the coefficients ``κ``,
on the device and inside ``jit``, from the model and from the Gram matrix ``G = VᵀV``,
which says how long a step is: ``|Vκ|² = κᵀ G κ``. No solver returns a non-finite
coefficient.

A :class:`Solver` is a descent (:mod:`fomoh_jax.solvers.descents`: which step, given its
size) and a search (:mod:`fomoh_jax.solvers.searches`: which size, given how the steps
before came out). Any two combine; those that have a name are functions of this module.
"""

from fomoh_jax.solvers import descents, searches
from fomoh_jax.solvers._combinations import (
    damped,
    newton,
    saddle_free,
    self_tuning,
    trust_region,
)
from fomoh_jax.solvers._solver import (
    Attempt,
    Descent,
    Outcome,
    Search,
    Solver,
    SolverState,
    Step,
)

__all__ = [
    "Attempt",
    "Descent",
    "Outcome",
    "Search",
    "Solver",
    "SolverState",
    "Step",
    "damped",
    "descents",
    "newton",
    "saddle_free",
    "searches",
    "self_tuning",
    "trust_region",
]
