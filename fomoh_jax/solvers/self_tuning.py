"""A step size that follows from the path itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fomoh_jax.averaging import HORIZON, window
from fomoh_jax.directions import average
from fomoh_jax.hyperdual import QuadraticModel
from fomoh_jax.metric import in_metric, rounding
from fomoh_jax.solvers.protocol import Solver, guarded, predicted_reduction

# The step size is averaged over so many steps: fewer and it is noise, more and it is
# late.
_MEMORY = 50
# Of one sample of the factor by which the path was too short.
_CLIP = 4.0
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
      factor: the last sample of the factor by which the path was too short.
      path_step_size: the step size behind the average that the path is measured from.
      mean_square: of the lengths of the steps that were any; 0 before the first.
      last_value: the loss that the last step started from; NaN before the first.
      predicted: by how much the model fell on the last step.
      streak: how many steps in a row have come true as predicted, int32.
      steps: so far, int32.
    """

    step_size: jax.Array
    factor: jax.Array
    path_step_size: jax.Array
    mean_square: jax.Array
    last_value: jax.Array
    predicted: jax.Array
    streak: jax.Array
    steps: jax.Array


def self_tuning(
    initial: float = 0.2, growth: float = 0.02, *, horizon: float = HORIZON
) -> Solver:
    r"""A step size that the next batches set, for nothing.

    Behind the directions that span the hyperplane it looks along
    ``directions.average(horizon)``, the path :math:`e` from the running average of the
    iterates to the iterate. No step is made along it. The model of the next batch,
    which has not seen the noise that the steps were fitted to, says by what factor the
    path as a whole should have been longer,

    .. math:: q = 1 - \frac{\nabla f \cdot e}{e^\top H e},

    and the step size :math:`\eta` is the average of :math:`q` times the step size
    behind the path. At its balance the iterate is no better than the average of the
    iterates before it and no worse: steps are as long as the noise allows. (A path
    of one step would balance where a step does not improve *the next batch*, which
    comes much too soon.)

    The step itself is half damped and half shortened, with eigenvalues
    :math:`\Lambda` and basis :math:`B` of the curvature in the metric
    :math:`V^\top V`,

    .. math:: \kappa = \sqrt\eta\; B \left(|\Lambda| + \left(1/\sqrt\eta - 1\right)
      \overline{|\Lambda|}\right)^{-1} B^\top V^\top \nabla f

    so that it is that of ``saddle_free()`` for :math:`\eta = 1`, and :math:`\eta` times
    it for curvatures that are equal. It goes downhill on the model whatever the
    curvature, and is at most twice as long as the steps before it are on average.

    Args:
      initial: the first step size, in (0, 1]. It is soon forgotten.
      growth: the step size grows by at most this fraction a step; after ``n``
        predictions in a row that came true within a quarter, as they do where the loss
        is the same at each step, by ``n`` times it; positive.
      horizon: as that of the path, in (0, 1].

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
    smallest = min(1e-3, initial)

    def init(k):
        if k < 2:
            raise ValueError(
                "self_tuning needs at least one direction before its path, the last; "
                f"got {k} of both."
            )
        dtype = jnp.result_type(float)
        size, zero = jnp.array(initial, dtype), jnp.zeros((), dtype)
        none = jnp.zeros((), jnp.int32)
        return SelfTuningState(
            step_size=size,
            factor=jnp.ones((), dtype),
            path_step_size=size,
            mean_square=zero,
            last_value=jnp.array(jnp.nan, dtype),
            predicted=zero,
            streak=none,
            steps=none,
        )

    def solve(model, gram, state):
        sample = _path_factor(model, state)
        streak = _streak(model, state)
        step_size = (
            state.step_size
            + (sample * state.path_step_size - state.step_size) / _MEMORY
        )
        fastest = state.step_size * (1 + growth * (1 + streak))
        step_size = jnp.minimum(step_size, fastest)
        # Where the loss is the same at each step, the model is to be trusted.
        step_size = jnp.where(streak >= _NO_ACCIDENT, fastest, step_size)
        step_size = jnp.clip(step_size, smallest, 1.0)

        # Along the path itself no step is made.
        plane = QuadraticModel(model.value, model.slope[:-1], model.curvature[:-1, :-1])
        coefficients, length = _shortened(plane, gram[:-1, :-1], step_size)
        longest = _LONGEST * jnp.sqrt(state.mean_square)
        bounded = (state.mean_square > 0) & (length > longest)
        shorter = jnp.where(bounded, longest / jnp.where(length > 0, length, 1), 1)
        coefficients, length = shorter * coefficients, shorter * length
        weight = jnp.maximum(1 / _MEMORY, 1 / (state.steps + 1))
        weight = jnp.where(state.mean_square > 0, weight, 1)
        mean_square = state.mean_square + weight * (length**2 - state.mean_square)
        share = 1 / window(state.steps, horizon)
        after = SelfTuningState(
            step_size=step_size,
            factor=sample,
            path_step_size=state.path_step_size
            + share * (shorter * step_size - state.path_step_size),
            mean_square=jnp.where(length > 0, mean_square, state.mean_square),
            last_value=model.value,
            predicted=predicted_reduction(plane, coefficients),
            streak=streak,
            steps=state.steps + 1,
        )
        return jnp.append(coefficients, 0), after

    return Solver(init, guarded(solve), probes=average(horizon))


def _path_factor(model: QuadraticModel, state: SelfTuningState) -> jax.Array:
    """One sample of the factor by which the path was too short."""
    slope, curvature = model.slope[-1], model.curvature[-1, -1]
    bent = curvature > 0  # before the first step the path is zero
    factor = 1 - slope / jnp.where(bent, curvature, 1)
    return jnp.where(bent, jnp.clip(factor, -_CLIP, _CLIP), 1)


def _streak(model: QuadraticModel, state: SelfTuningState) -> jax.Array:
    """How many predictions in a row have come true."""
    actual = state.last_value - model.value  # NaN at the first: no agreement
    off = jnp.abs(actual - state.predicted)
    true = (off <= _AGREEMENT * state.predicted) & (state.predicted > 0)
    return jnp.where(true, state.streak + 1, 0)


def _shortened(
    model: QuadraticModel, gram: jax.Array, step_size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The damped and shortened step, and its length."""
    eigenvalues, basis = in_metric(model.curvature, gram)
    size, kept = jnp.abs(eigenvalues), jnp.any(basis != 0, axis=0)
    mean = jnp.sum(jnp.where(kept, size, 0)) / jnp.maximum(jnp.sum(kept), 1)
    half = jnp.sqrt(step_size).astype(size.dtype)
    bent = size + (1 / half - 1) * mean
    flat = (size <= rounding(size)) & (bent <= rounding(size)) | (bent == 0)
    step = half * (basis.T @ model.slope) / jnp.where(flat, 1, bent)
    step = jnp.where(flat, 0, step)
    return basis @ step, jnp.linalg.norm(step)
