"""A step size that follows from whether the model's predictions come true."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fomoh_jax._hyperdual import QuadraticModel
from fomoh_jax._metric import in_metric, rounding
from fomoh_jax.solvers._flat import ReachState, flat_step, no_reach, started
from fomoh_jax.solvers._protocol import Solver, guarded, predicted_reduction

# Reductions are counted over about the last sixth of all steps, 1 / (1 + 1 / 0.2):
# a window in proportion to the steps made needs not know how many there will be.
_HORIZON = 0.2
# Their ratio is that of averages over so many steps: fewer and it is noise, more and
# it is late.
_MEMORY = 50
# So many steps are too few to judge by.
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
# Below that there is no telling noise from steps.
_SMALLEST = 1e-3
# No step is longer than this many times the root mean square of those before it.
_LONGEST = 2.0
# How close the actual reduction must be to the predicted for a streak, and how long a
# streak is not left to chance.
_AGREEMENT = 0.25
_NO_ACCIDENT = 5


class SelfTuningState(NamedTuple):
    """State of :func:`self_tuning`.

    Attributes:
      step_size: what part of the way to the minimum of the model a step goes, at most
        1.
      gain: what part of the predicted reduction has come, of late.
      recent: ``[2]``, the actual and the predicted reduction over the last steps, each
        as of the running average of the losses.
      averaged: ``[2]``, the averages of the two whose ratio is the gain.
      mean_step_size: the running average of the step sizes over the same steps.
      mean_square: of the lengths of the steps that were any; 0 before the first.
      last_value: the loss that the last step started from; 0 before the first.
      predicted: by how much the model fell on the last step.
      streak: how many steps in a row have come true as predicted, int32.
      steps: so far, int32.
      reach: how far a step goes where the model has no curvature.
    """

    step_size: jax.Array
    gain: jax.Array
    recent: jax.Array
    averaged: jax.Array
    mean_step_size: jax.Array
    mean_square: jax.Array
    last_value: jax.Array
    predicted: jax.Array
    streak: jax.Array
    steps: jax.Array
    reach: ReachState


def self_tuning(initial: float = 0.05, growth: float = 0.1) -> Solver:
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

    The step itself is half damped and half shortened, with eigenvalues
    :math:`\Lambda` and basis :math:`B` of the curvature in the metric
    :math:`V^\top V`,

    .. math:: \kappa = \sqrt\eta\; B \left(|\Lambda| + \left(1/\sqrt\eta - 1\right)
      \overline{|\Lambda|}\right)^{-1} B^\top V^\top \nabla f

    so that it is that of ``saddle_free()`` for :math:`\eta = 1`, and :math:`\eta` times
    it for curvatures that are equal. It goes downhill on the model whatever the
    curvature. It is at most twice as long as the steps before it are on average, unless
    these have come true. Where the model has slopes and no curvature at all, as that of
    a median regression, steps go as far as those before them have lowered the loss as
    predicted (:class:`ReachState`).

    Steps have to be taken as they are: whatever scales them afterwards, such as a
    learning rate, makes the predictions wrong.

    Args:
      initial: what the first step size grows from, in (0, 1].
      growth: the step size grows by at most this fraction a step; after ``n``
        predictions in a row that came true within a quarter, as they do where the loss
        is the same at each step, by ``n + 1`` times it; positive.

    Returns:
      A solver, whose state is a :class:`SelfTuningState`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from fomoh_jax import directions, scale_by_hyperplane, solvers
      >>> tx = optax.chain(
      ...   scale_by_hyperplane(directions.gaussian(2), solvers.self_tuning()),
      ...   optax.scale(-1.0),
      ... )
      >>> loss = lambda x: jnp.sum((x - 1) ** 2 * jnp.arange(1.0, 6.0))
      >>> x = jnp.zeros(5)
      >>> state = tx.init(x)
      >>> @jax.jit
      ... def step(x, state):
      ...   updates, state = tx.update(None, state, x, value_fn=loss)
      ...   return optax.apply_updates(x, updates), state
      >>> for _ in range(100):
      ...   x, state = step(x, state)
      >>> print(bool(loss(x) < 1e-6))
      True
    """
    if not (0 < initial <= 1 and growth > 0):
        raise ValueError(
            "self_tuning needs 0 < initial <= 1 and growth > 0; got "
            f"initial={initial}, growth={growth}."
        )
    smallest = min(_SMALLEST, initial)

    def init(k):
        del k
        dtype = jnp.result_type(float)
        size, zero = jnp.array(initial, dtype), jnp.zeros((), dtype)
        none = jnp.zeros((), jnp.int32)
        return SelfTuningState(
            step_size=size,
            gain=jnp.ones((), dtype),
            recent=jnp.zeros(2, dtype),
            averaged=jnp.zeros(2, dtype),
            mean_step_size=size,
            mean_square=zero,
            last_value=zero,
            predicted=zero,
            streak=none,
            steps=none,
            reach=no_reach(),
        )

    def solve(model, gram, state):
        steps = state.steps.astype(state.step_size.dtype)
        share = 1 / (1 + _HORIZON * steps)
        weight = jnp.maximum(1 / _MEMORY, 1 / (steps + 1))
        actual = jnp.where(state.steps > 0, state.last_value - model.value, 0)
        streak = _streak(actual, state)
        # How far a sequence is from its running average follows from its differences.
        fell = jnp.stack([actual, state.predicted])
        recent = (1 - share) * (state.recent + fell)
        averaged = state.averaged + weight * (recent - state.averaged)
        gain = _ratio(*averaged)

        often = 1 + streak.astype(state.step_size.dtype)
        fastest = state.step_size * (1 + growth * often)
        slowest = state.step_size * (1 - _FALL)
        target = jnp.where(
            state.steps < _UNJUDGED, 1, _target(gain, state.mean_step_size)
        )
        step_size = jnp.clip(target, slowest, fastest)
        # Where the loss is the same at each step, the model is to be trusted.
        trusted = streak >= _NO_ACCIDENT
        step_size = jnp.where(
            trusted, jnp.minimum(fastest, 1), jnp.minimum(step_size, _FURTHEST)
        )
        step_size = jnp.maximum(step_size, smallest)

        slope, flat, curved, basis = _shortened(model, gram, step_size)
        along, reach = flat_step(state.reach, model.value, slope, flat)
        step = curved + along
        coefficients, length = basis @ step, jnp.linalg.norm(step)
        longest = _LONGEST * jnp.sqrt(state.mean_square)
        bounded = (state.mean_square > 0) & (length > longest) & ~trusted
        shorter = jnp.where(bounded, longest / jnp.where(length > 0, length, 1), 1)
        coefficients, length = shorter * coefficients, shorter * length
        weight = jnp.where(state.mean_square > 0, weight, 1)
        mean_square = state.mean_square + weight * (length**2 - state.mean_square)
        after = SelfTuningState(
            step_size=step_size,
            gain=gain,
            recent=recent,
            averaged=averaged,
            mean_step_size=state.mean_step_size
            + share * (step_size - state.mean_step_size),
            mean_square=jnp.where(length > 0, mean_square, state.mean_square),
            last_value=model.value,
            predicted=predicted_reduction(model, coefficients),
            streak=streak,
            steps=state.steps + 1,
            reach=started(reach, model, coefficients, shorter * along),
        )
        return coefficients, after

    return Solver(init, guarded(solve))


def _streak(actual: jax.Array, state: SelfTuningState) -> jax.Array:
    """How many predictions in a row have come true."""
    off = jnp.abs(actual - state.predicted)
    true = (off <= _AGREEMENT * state.predicted) & (state.predicted > 0)
    return jnp.where(true, state.streak + 1, 0)


def _ratio(actual: jax.Array, predicted: jax.Array) -> jax.Array:
    """The gain, kept within what one can learn from: noise makes it any number."""
    known = predicted > 0
    return jnp.where(known, jnp.clip(actual / jnp.where(known, predicted, 1), -1, 2), 1)


def _target(gain: jax.Array, step_size: jax.Array) -> jax.Array:
    """The step size to aim at after this gain of steps of this size."""
    best = gain * (1 - step_size / 2) + step_size / 2
    best = jnp.clip(best, _SMALLEST, 1)
    return jnp.minimum(best**_FORESIGHT, _BOLDEST * best)


def _shortened(
    model: QuadraticModel, gram: jax.Array, step_size: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The slope, where it meets no curvature, the step where it does, and their basis.

    That step is the damped and shortened one.
    """
    eigenvalues, basis = in_metric(model.curvature, gram)
    size, kept = jnp.abs(eigenvalues), jnp.any(basis != 0, axis=0)
    mean = jnp.sum(jnp.where(kept, size, 0)) / jnp.maximum(
        jnp.sum(kept, dtype=size.dtype), 1
    )
    half = jnp.sqrt(step_size).astype(size.dtype)
    damped = size + (1 / half - 1) * mean
    flat = (size <= rounding(size)) & (damped <= rounding(size)) | (damped == 0)
    slope = basis.T @ model.slope
    curved = jnp.where(flat, 0, half * slope / jnp.where(flat, 1, damped))
    return slope, flat, curved, basis
