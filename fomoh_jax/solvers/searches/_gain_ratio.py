"""A size that grows where the loss falls as predicted, and shrinks elsewhere."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax.solvers._solver import Outcome, Search

# The bounds of the gain ratio, and the factors by which the size then changes (Nocedal
# and Wright, algorithm 4.1).
_POOR, _GOOD, _SHRINK, _GROW = 0.25, 0.75, 0.25, 2.0
# Sizes that are tried at once. (With 4, BIGGS6 and DEVGLA2 of CUTEst's problems end in
# other minima.)
_APART = 3.0


class GainRatioState(NamedTuple):
    """State of :func:`gain_ratio`.

    Attributes:
      size: of the next step; with ``descents.trust()`` it is the trust radius.
      used: how much of its size the last step used; 0 before the first.
    """

    size: Float[Array, ""]
    used: Float[Array, ""]


def gain_ratio(
    initial: float = 1.0,
    *,
    largest: float = 1e6,
    measured_on: Literal["same", "next"] = "same",
    tries: int = 1,
) -> Search:
    r"""A size that follows the gain.

    .. math:: \rho = \frac{f(\theta) - f(\theta - V\kappa)}
      {\kappa^\top s - \tfrac12 \kappa^\top C \kappa}

    The size is divided by 4 when the gain :math:`\rho` is below 1/4, and doubled when
    it is above 3/4 and a larger size would have led further. The step has to be taken
    whole: use a learning rate of 1 after it.

    Args:
      initial: the first size; positive.
      largest: no size is larger; at least ``initial``.
      measured_on: ``"same"`` evaluates the loss at the end of the step, on the same
        batch, by one more forward pass, and takes no step that raises it by more than
        rounding: for losses that are the same at each step. ``"next"`` takes every
        step, and judges it by the value of the next model, on another batch.
      tries: how many sizes are tried at each step: the size, a third of it, three
        times it, and so on in factors of three, at most ``largest``. The loss is
        evaluated at the end of each step, and the one that leads to the least loss is
        taken, with its size (the first of those that do so to rounding). More than one
        needs ``measured_on="same"``.

    Returns:
      A search.

    Raises:
      ValueError: if an argument is out of range.

    References:
      Nocedal and Wright, *Numerical Optimization*, 2006, algorithm 4.1.
    """
    if not 0 < initial <= largest:
        raise ValueError(
            "gain_ratio needs 0 < initial <= largest; got "
            f"initial={initial}, largest={largest}."
        )
    if measured_on not in ("same", "next"):
        raise ValueError(f'measured_on must be "same" or "next"; got {measured_on!r}.')
    tries = check_size("tries", tries)
    if tries > 1 and measured_on == "next":
        raise ValueError(
            'several tries need measured_on="same", which evaluates the loss where '
            f"each of them leads; got tries={tries}."
        )
    factors = _factors(tries)

    def init():
        dtype = jnp.result_type(float)
        return GainRatioState(jnp.array(initial, dtype), jnp.zeros((), dtype))

    def learn(outcome, state):
        gain = _gain(outcome)
        shorter = _SHRINK * jnp.minimum(state.used, state.size)
        longer = jnp.minimum(_GROW * state.size, largest)
        whole = state.used >= 0.99 * state.size
        after = jnp.where((gain > _GOOD) & whole, longer, state.size)
        after = jnp.where(gain < _POOR, shorter, after)
        after = jnp.maximum(after, _smallest(after.dtype))
        # Where there was no step, there is nothing to learn.
        stepped = (outcome.predicted != 0) & (state.used > 0)
        return gain > 0, state._replace(size=jnp.where(stepped, after, state.size))

    def limit(step, state):
        return 1.0, state._replace(used=step.size)

    def fork(state):
        sizes = state.size * factors.astype(state.size.dtype)
        sizes = jnp.clip(sizes, _smallest(sizes.dtype), largest)
        return GainRatioState(sizes, jnp.broadcast_to(state.used, sizes.shape))

    return Search(
        lambda state: state.size,
        learn,
        limit,
        init,
        looks_ahead=measured_on == "same",
        fork=fork if tries > 1 else None,
    )


def _factors(tries: int) -> np.ndarray:
    """The sizes that are tried, over the size itself, which is the first."""
    powers = np.arange(tries)  # 0, -1, 1, -2, 2, …
    return _APART ** np.where(powers % 2, -(powers + 1) // 2, powers // 2)


def _gain(outcome: Outcome) -> Float[Array, ""]:
    """The actual over the predicted reduction; 1 where they agree to rounding."""
    value, predicted, actual = outcome
    # Near the minimum both reductions are rounding.
    noise = 10 * jnp.finfo(predicted.dtype).eps * jnp.abs(value)
    agree = (jnp.abs(actual - predicted) <= noise) & (predicted >= -noise)
    # A model that rises, by rounding, has nothing to be compared with.
    falls = predicted > 0
    gain = jnp.where(falls, actual / jnp.where(falls, predicted, 1), -1.0)
    return jnp.where(agree, 1.0, gain)


def _smallest(dtype: jnp.dtype) -> float:
    """The square of a length stays within the range of the numbers."""
    return 10 * float(jnp.finfo(dtype).tiny) ** 0.5
