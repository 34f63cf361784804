"""Sources of the directions that span the hyperplane.

A source makes a tree like the parameters whose leaves have a leading axis ``k``, or are
a :class:`fomoh_jax.Stack` where some of the ``k`` are known to be zero, a
:class:`fomoh_jax.Deferred`, made where it is needed, or a :class:`fomoh_jax.LowRank`,
which is a product. Sources compose by ``+``: ``gaussian(7) + incoming()`` spans seven
random directions and the update that the chain hands in.
"""

from fomoh_jax.directions._random import (
    deferred,
    gaussian,
    low_rank,
    orthonormal,
    rademacher,
    sparse,
)
from fomoh_jax.directions._remembered import HistoryState, history
from fomoh_jax.directions._source import Directions
from fomoh_jax.directions._structured import coordinates, incoming, layerwise, masked

__all__ = [
    "Directions",
    "HistoryState",
    "coordinates",
    "deferred",
    "gaussian",
    "history",
    "incoming",
    "layerwise",
    "low_rank",
    "masked",
    "orthonormal",
    "rademacher",
    "sparse",
]
