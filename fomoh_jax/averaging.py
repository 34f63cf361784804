"""The window of a running average that grows with the number of steps."""

import jax

# An average over about the last sixth of all the steps (1 / (1 + 5)), at any time.
HORIZON = 0.2


def window(count: jax.Array, horizon: float = HORIZON) -> jax.Array:
    r"""How many of the last steps an average spans, ``1 + horizon * count``.

    .. math:: \bar x \leftarrow \bar x + (x - \bar x) / (1 + h t)

    With a window in proportion to the steps made, nothing needs to know how many there
    will be.

    Args:
      count: of the steps so far, an integer array.
      horizon: the window's share of them, in (0, 1].

    Returns:
      A floating-point array like ``count``.

    Raises:
      ValueError: if ``horizon`` is out of range.
    """
    if not 0 < horizon <= 1:
        raise ValueError(f"horizon must be in (0, 1]; got {horizon}.")
    return 1 + horizon * count
