"""The whole curvature, of coefficients that may be local."""

import dataclasses

import jax
import numpy as np
from jax.tree_util import register_static
from jaxtyping import Array

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.form import Bilinear
from fomoh_jax._hyperdual.pair_forms import Pairs
from fomoh_jax._hyperdual.parts import NotLocalError


@register_static
@dataclasses.dataclass(frozen=True)
class LocalPairs(Pairs):
    """Like :class:`Pairs`, but products of local channels stay local.

    The diagonal is numbered from 0 on, and then the pairs ``i < j`` by rows.
    """

    k: int

    @property
    def q(self) -> int:
        return self.k * (self.k + 1) // 2

    def number(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The number of the coefficient of the directions ``i <= j``."""
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

    def entries(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The entries of a symmetric matrix that some coefficients are.

        Args:
          numbers: of the coefficients, each once.

        Returns:
          Their rows and columns in both triangles, sorted, and which of the
          coefficients each is.
        """
        i, j = self.directions(numbers)
        (apart,) = np.nonzero(i != j)
        rows, columns = np.append(i, j[apart]), np.append(j, i[apart])
        order = np.lexsort((columns, rows))
        source = np.append(np.arange(len(i)), apart)
        return rows[order], columns[order], source[order]

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


@register_static
@dataclasses.dataclass(frozen=True)
class AllLocal(LocalPairs):
    """Like :class:`LocalPairs`, for products of local channels alone.

    Any other product raises :class:`NotLocalError`.
    """

    def _product(self, a: Stack, b: Stack) -> Channel:
        raise NotLocalError

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        raise NotLocalError

    def _quadratic(self, function, xs, out_axes) -> list[Channel]:
        raise NotLocalError


def added_up(seconds: Channel, form: LocalPairs) -> tuple[np.ndarray, Array]:
    """Second-order coefficients of one number, and which they are, each once."""
    values, numbers = seconds.terms(form.q)
    numbers, places = np.unique(numbers, return_inverse=True)
    return numbers, jax.ops.segment_sum(values, places, len(numbers))
