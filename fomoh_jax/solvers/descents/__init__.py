"""Which step to take on the hyperplane, given its size.

Each is a :class:`fomoh_jax.solvers.Descent`. Size 1 is the whole step; a smaller size
leads less far.
"""

from fomoh_jax.solvers.descents._levenberg import damped
from fomoh_jax.solvers.descents._newton_step import newton
from fomoh_jax.solvers.descents._reach import ReachState
from fomoh_jax.solvers.descents._saddle_free import saddle_free
from fomoh_jax.solvers.descents._trust import trust

__all__ = ["ReachState", "damped", "newton", "saddle_free", "trust"]
