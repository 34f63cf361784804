"""How far to go along a descent, from how the steps before came out.

Each is a :class:`fomoh_jax.solvers.Search`.
"""

from fomoh_jax.solvers.searches._constant import constant
from fomoh_jax.solvers.searches._gain_ratio import GainRatioState, gain_ratio
from fomoh_jax.solvers.searches._self_tuning import SelfTuningState, self_tuning

__all__ = [
    "GainRatioState",
    "SelfTuningState",
    "constant",
    "gain_ratio",
    "self_tuning",
]
