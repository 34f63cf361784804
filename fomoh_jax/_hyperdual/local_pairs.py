"""The whole curvature, of coefficients that may be local."""

import dataclasses

import numpy as np
from jax.tree_util import register_static

from fomoh_jax._hyperdual.channels import Channel
from fomoh_jax._hyperdual.pair_forms import Pairs


@register_static
@dataclasses.dataclass(frozen=True)
class LocalPairs(Pairs):
    """As :class:`Pairs`; what is local stays so in products.

    The diagonal is numbered from 0 on, and then the pairs ``i < j`` by rows.
    """

    k: int

    @property
    def q(self) -> int:
        return self.k * (self.k + 1) // 2

    def number(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Which coefficient belongs to the directions ``i <= j``."""
        i, j = np.asarray(i, np.int64), np.asarray(j, np.int64)
        before = i * (2 * self.k - i - 1) // 2  # in the rows above
        return np.where(i == j, i, self.k + before + j - i - 1)

    def directions(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The directions ``i <= j`` of coefficients."""
        behind = self.q - 1 - numbers  # counted from the end, rows grow one by one
        row = ((np.sqrt(8.0 * behind + 1) - 1) / 2).astype(np.int64)
        row -= row * (row + 1) // 2 > behind  # where the root was rounded up
        row += (row + 1) * (row + 2) // 2 <= behind
        i = self.k - 2 - row
        j = self.k - 1 - (behind - row * (row + 1) // 2)
        own = numbers < self.k
        return np.where(own, numbers, i), np.where(own, numbers, j)

    def product(self, a: Channel, b: Channel) -> Channel:
        if a is b:
            known = a.squared(self)
            return super().product(a, a) if known is None else known
        known = a.crossed(b, self)
        # Symmetric: of products that are not, only the sum is wanted, which is.
        return super().product(a, b) if known is None else 0.5 * known

    def cross(self, a: Channel, b: Channel) -> Channel:
        known = None if a is b else a.crossed(b, self)
        return super().cross(a, b) if known is None else known
