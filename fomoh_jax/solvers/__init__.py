"""How the k×k system of the hyperplane is solved.

On ``θ - Vκ`` the quadratic model of the loss is ``f - κ·s + ½ κᵀ C κ`` with the slopes
``s = Vᵀ∇f`` and the curvature ``C = Vᵀ H V``. A solver chooses the coefficients ``κ``,
on the device and inside ``jit``, from the model and from the Gram matrix ``G = VᵀV``,
which says how long a step is: ``|Vκ|² = κᵀ G κ``. No solver returns a non-finite
coefficient.
"""

from fomoh_jax.solvers._flat import ReachState
from fomoh_jax.solvers._protocol import Solver
from fomoh_jax.solvers._saddle_free import saddle_free
from fomoh_jax.solvers._self_tuning import SelfTuningState, self_tuning
from fomoh_jax.solvers._stateless import damped, newton
from fomoh_jax.solvers._trust_region import TrustRegionState, trust_region

__all__ = [
    "ReachState",
    "SelfTuningState",
    "Solver",
    "TrustRegionState",
    "damped",
    "newton",
    "saddle_free",
    "self_tuning",
    "trust_region",
]
