"""A step size that follows from whether the predictions of the models come true."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fomoh_jax.solvers._solver import Outcome, Search, Step

# Reductions are counted over about the last sixth of all steps, 1 / (1 + 1 / 0.2):
# a window in proportion to the steps made needs not know how many there will be.
_HORIZON = 0.2
# The number of steps over which the ratio of the two is averaged: with fewer it is
# noise, and with more it is late.
_MEMORY = 50
# The fewest steps that one can judge by.
_UNJUDGED = 3
# The step size aimed at is the best one for the next step to this power (so that it is
# larger), and at most so many times that.
_FORESIGHT = 0.6
_BOLDEST = 1.25
# No step goes further on what noisy losses say. It makes 2 η - η², that is 98 %, of the
# progress of a whole one, at 72 % of its squared length; most of that is a random walk.
_FURTHEST = 0.85
# The largest part by which a step size falls.
_FALL = 0.02
# The least step size to aim at: below it, noise cannot be told from steps.
_SMALLEST = 1e-3
# No step is longer than this many times the root mean square of those before it. While
# predictions come true, this is no less than the longest of them, so that lengths may
# double; a single model whose curvature is nearly zero is not to be trusted.
_LONGEST = 2.0
# How close the actual reduction must be to the predicted for a streak, and how long a
# streak is not left to chance.
_AGREEMENT = 0.25
_NO_ACCIDENT = 5


class SelfTuningState(NamedTuple):
    """State of :func:`self_tuning`.

    Attributes:
      step_size: of the last step, at most 1.
      recent: ``[2]``, how far the loss is below its running average, and how far the
        predictions say that it should be.
      averaged: ``[2]``, the averages of the two whose ratio is the gain.
      mean_step_size: the running average of the step sizes over the same steps.
      mean_square: running mean of the squared lengths of the nonzero steps; 0 before
        the first.
      streak: how many steps in a row have come true as predicted, int32.
      steps: so far, int32.
    """

    step_size: Float[Array, ""]
    recent: Float[Array, "2"]
    averaged: Float[Array, "2"]
    mean_step_size: Float[Array, ""]
    mean_square: Float[Array, ""]
    streak: Int[Array, ""]
    steps: Int[Array, ""]


def self_tuning(initial: float = 0.05, growth: float = 0.1) -> Search:
    r"""A step size tuned from the losses of later batches, at no extra evaluations.

    A step is fitted to its batch, noise and all; the losses of the batches after it are
    not. What part of the reductions that the models predicted has come,

    .. math:: r = \frac{\bar f - f_t}{\bar c_t}, \qquad
      \bar f \leftarrow \bar f + (f_t - \bar f) / (1 + 0.2\, t)

    with :math:`\bar c_t` the same average of the predictions and both sides averaged
    over 50 steps, tells how much of a slope is signal. With slopes :math:`s` that carry
    noise of variance :math:`\sigma^2`, steps of size :math:`\eta` have

    .. math:: r = \frac{\eta^\ast - \eta/2}{1 - \eta/2}, \qquad
      \eta^\ast = \frac{s^2}{s^2 + \sigma^2}

    where :math:`\eta^\ast` is the size that lowers the loss most in one step. It is 1
    where the loss is the same at each step. Steps that are larger make more of the
    steps that come after them, so that the step size aimed at is
    :math:`\min(\eta^{\ast\, 3/5}, \tfrac54 \eta^\ast)`, but at most 0.85. (The second
    term makes the step size fall when steps bring no progress.)

    A step is at most twice as long as those before it are on average; while predictions
    come true, as the longest of them. Steps have to be taken as they are: whatever
    scales them afterwards, such as a learning rate, makes the predictions wrong.

    Args:
      initial: what the first step size grows from, in (0, 1].
      growth: the step size grows by at most this fraction a step; after ``n``
        predictions in a row that came true within a quarter, as they do where the loss
        is the same at each step, by ``n + 1`` times it; positive.

    Returns:
      A search.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from fomoh_jax.solvers import searches
      >>> search = searches.self_tuning(initial=0.5)
      >>> print(search.size(search.init()))
      0.5
    """
    if not (0 < initial <= 1 and growth > 0):
        raise ValueError(
            "self_tuning needs 0 < initial <= 1 and growth > 0; got "
            f"initial={initial}, growth={growth}."
        )
    smallest = min(_SMALLEST, initial)

    def init():
        dtype = jnp.result_type(float)
        return SelfTuningState(
            step_size=jnp.array(initial, dtype),
            recent=jnp.zeros(2, dtype),
            averaged=jnp.zeros(2, dtype),
            mean_step_size=jnp.array(initial, dtype),
            mean_square=jnp.zeros((), dtype),
            streak=jnp.zeros((), jnp.int32),
            steps=jnp.zeros((), jnp.int32),
        )

    def learn(outcome, state):
        state, target = _counted(outcome, state)
        often = 1 + state.streak.astype(target.dtype)
        fastest = state.step_size * (1 + growth * often)
        slowest = state.step_size * (1 - _FALL)
        step_size = jnp.clip(target, slowest, fastest)
        # Where the loss is the same at each step, the model is to be trusted.
        step_size = jnp.where(
            _is_trusted(state),
            jnp.minimum(fastest, 1),
            jnp.minimum(step_size, _FURTHEST),
        )
        step_size = jnp.maximum(step_size, smallest)
        share, _ = _shares(state)
        change = share * (step_size - state.mean_step_size)
        return True, state._replace(
            step_size=step_size, mean_step_size=state.mean_step_size + change
        )

    return Search(lambda state: state.step_size, learn, _limit, init)


def _counted(
    outcome: Outcome, state: SelfTuningState
) -> tuple[SelfTuningState, Float[Array, ""]]:
    """The state after the reductions of one more step, and the size to aim at."""
    share, weight = _shares(state)
    # How far a sequence is from its running average follows from its differences.
    fell = jnp.stack([outcome.actual, outcome.predicted])
    recent = (1 - share) * (state.recent + fell)
    averaged = state.averaged + weight * (recent - state.averaged)
    target = _target(_gain(*averaged), state.mean_step_size)
    target = jnp.where(state.steps < _UNJUDGED, 1, target)
    streak = _streak(outcome, state.streak)
    return state._replace(recent=recent, averaged=averaged, streak=streak), target


def _limit(
    step: Step, state: SelfTuningState
) -> tuple[Float[Array, ""], SelfTuningState]:
    """The factor that makes a step no longer than those before it allow."""
    _, weight = _shares(state)
    length = step.length
    longest = _LONGEST * jnp.sqrt(state.mean_square)
    bounded = (state.mean_square > 0) & (length > longest)
    shorter = jnp.where(bounded, longest / jnp.where(length > 0, length, 1), 1)
    length = shorter * length
    weight = jnp.where(state.mean_square > 0, weight, 1)
    mean_square = state.mean_square + weight * (length**2 - state.mean_square)
    least = jnp.where(_is_trusted(state), length**2, 0)
    mean_square = jnp.maximum(mean_square, least)
    return shorter, state._replace(
        mean_square=jnp.where(length > 0, mean_square, state.mean_square),
        steps=state.steps + 1,
    )


def _is_trusted(state: SelfTuningState) -> Bool[Array, ""]:
    """Whether so many predictions in a row have come true that it is no accident."""
    return state.streak >= _NO_ACCIDENT


def _shares(state: SelfTuningState) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The shares of the newest step in the running average and in the gain."""
    steps = state.steps.astype(state.step_size.dtype)
    return 1 / (1 + _HORIZON * steps), jnp.maximum(1 / _MEMORY, 1 / (steps + 1))


def _streak(outcome: Outcome, streak: Int[Array, ""]) -> Int[Array, ""]:
    """The number of predictions in a row that have come true."""
    _, predicted, actual = outcome
    true = (jnp.abs(actual - predicted) <= _AGREEMENT * predicted) & (predicted > 0)
    return jnp.where(true, streak + 1, 0)


def _gain(actual: Float[Array, ""], predicted: Float[Array, ""]) -> Float[Array, ""]:
    """The gain, kept within what one can learn from: noise makes it any number."""
    known = predicted > 0
    return jnp.where(known, jnp.clip(actual / jnp.where(known, predicted, 1), -1, 2), 1)


def _target(gain: Float[Array, ""], step_size: Float[Array, ""]) -> Float[Array, ""]:
    """The step size to aim at after this gain of steps of this size."""
    best = gain * (1 - step_size / 2) + step_size / 2
    best = jnp.clip(best, _SMALLEST, 1)
    return jnp.minimum(best**_FORESIGHT, _BOLDEST * best)
