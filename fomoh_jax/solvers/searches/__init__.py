"""Searches, which choose how far to go along a descent, from earlier outcomes.

Each is a :class:`fomoh_jax.solvers.Search`.

Example:
  >>> import jax.numpy as jnp
  >>> from fomoh_jax.solvers import Outcome, searches
  >>> search = searches.gain_ratio(1.0)
  >>> state = search.init()._replace(used=jnp.array(1.0))  # a step of size 1
  >>> for actual in (0.9, 0.5, 0.1):  # of a predicted reduction of 1
  ...   outcome = Outcome(*map(jnp.array, (5.0, 1.0, actual)))
  ...   print(search.size(search.learn(outcome, state)[1]))
  2.0
  1.0
  0.25
"""

from fomoh_jax.solvers.searches._constant_size import constant
from fomoh_jax.solvers.searches._gain_ratio import GainRatioState, gain_ratio
from fomoh_jax.solvers.searches._self_tuning import SelfTuningState, self_tuning

__all__ = [
    "GainRatioState",
    "SelfTuningState",
    "constant",
    "gain_ratio",
    "self_tuning",
]
