"""Where the hyperplane points: sources of directions.

A source makes a tree like the parameters whose leaves have a leading axis ``k``, or are
an :class:`fomoh_jax.Active` where some of the ``k`` are known to be zero. Sources
compose by ``+``: ``gaussian(7) + incoming()`` spans seven random directions and the
update that the chain hands in.
"""

from fomoh_jax.directions.random import (
    gaussian,
    orthonormal,
    rademacher,
    regenerated,
    sparse,
)
from fomoh_jax.directions.remembered import HistoryState, history
from fomoh_jax.directions.source import Directions
from fomoh_jax.directions.structured import incoming, layerwise, masked

__all__ = [
    "Directions",
    "HistoryState",
    "gaussian",
    "history",
    "incoming",
    "layerwise",
    "masked",
    "orthonormal",
    "rademacher",
    "regenerated",
    "sparse",
]
