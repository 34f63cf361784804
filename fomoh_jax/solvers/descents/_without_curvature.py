"""Steps where the model has slopes and no curvature.

The loss of a median or quantile regression, or a hinge, is piecewise linear. Its model
has no minimum, and the curvature does not say how far to go. What does is whether the
steps made so far have lowered the loss as their slopes said.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fomoh_jax.solvers._solver import Outcome

# The first step is to win this part of the loss, if the slope holds; where the loss is
# zero, it is this long.
_FIRST, _FIRST_LENGTH = 0.05, 1e-3
# After n predictions in a row that came true, or did not, the reach grows or shrinks by
# 1 + n times this. As many of either leave it as it is, so that noise does.
_RATE = 0.1
# A prediction comes true if this part of the best ratio of late is reached.
_TRUE = 0.5
# Reductions are summed, each with this part of those before it: over a kink, steps of
# one length go to and fro, and every other one comes true. The second sum is for the
# best ratio, which noise must not set, and which is forgotten slowly.
_RECENT = (0.5, 0.75)
_FORGET = 0.98


class ReachState(NamedTuple):
    """State of the length of steps without curvature.

    Attributes:
      length: that of the next step, in the units of the parameters; 0 before the first.
      run: how many predictions in a row have come true, or minus how many have not,
        int32.
      best: the best ratio of actual to predicted reduction in recent steps. A learning
        rate after the solver makes it smaller than 1.
      recent: ``[2, 2]``, two sums over the last steps of the actual and of the
        predicted reduction.
      made: whether the last step moved along directions without curvature.
    """

    length: Float[Array, ""]
    run: Int[Array, ""]
    best: Float[Array, ""]
    recent: Float[Array, "2 2"]
    made: Bool[Array, ""]


def no_reach(k: int) -> ReachState:
    """The state before the first step; the same for any number of directions."""
    del k
    dtype = jnp.result_type(float)
    return ReachState(
        length=jnp.zeros((), dtype),
        run=jnp.zeros((), jnp.int32),
        best=jnp.zeros((), dtype),
        recent=jnp.zeros((2, 2), dtype),
        made=jnp.zeros((), bool),
    )


def flat_step(
    reach: ReachState,
    last: Outcome,
    value: Float[Array, ""],
    slope: Float[Array, " k"],
    flat: Bool[Array, " k"],
) -> tuple[Float[Array, " k"], ReachState]:
    """The step where the model is flat, once the last one has told what it won.

    Args:
      reach: the state after the last step.
      last: how that came out.
      value: the loss where the step starts.
      slope: ``V^T grad f`` in an orthonormal basis.
      flat: along which of its axes there is no curvature.

    Returns:
      A step as long as the reach, or none if it would win no more than rounding; and
      the state.
    """
    whole, slope = jnp.linalg.norm(slope), jnp.where(flat, slope, 0)
    size = jnp.linalg.norm(slope)
    # Where fewer equations than directions make the model flat, what is left of a slope
    # is rounding.
    size = jnp.where(size > jnp.finfo(value.dtype).eps ** 0.5 * whole, size, 0)
    sound = jnp.where(size > 0, size, 1)
    reach = _judged(reach, last)
    first = jnp.where(value == 0, _FIRST_LENGTH, _FIRST * jnp.abs(value) / sound)
    first = jnp.where(size > 0, first, 0)
    length = jnp.where(reach.length > 0, reach.length, first)
    hidden = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    scale = jnp.where(length * size > hidden, length / sound, 0)
    along = scale * slope
    return along, reach._replace(length=length, made=jnp.any(along != 0))


def _judged(reach: ReachState, last: Outcome) -> ReachState:
    """The reach after the outcome of the last step, if that was flat."""
    made = reach.made & (last.predicted > 0)
    fell = jnp.stack([last.actual, jnp.where(made, last.predicted, 0)])
    recent = jnp.array(_RECENT, fell.dtype)[:, None] * reach.recent + fell[None]
    ratio, longer = recent[:, 0] / jnp.where(made, recent[:, 1], 1)
    best = jnp.maximum(_FORGET * reach.best, jnp.clip(longer, 0, 1))
    true = (ratio > 0) & (ratio >= _TRUE * best)
    run = jnp.where(true, jnp.maximum(reach.run, 0) + 1, jnp.minimum(reach.run, 0) - 1)
    factor = 1 + _RATE * jnp.abs(run).astype(fell.dtype)
    length = reach.length * jnp.where(true, factor, 1 / factor)
    # Down a slope without end, its square stays within the range of the numbers.
    length = jnp.minimum(length, 1e-3 * jnp.finfo(fell.dtype).max ** 0.5)
    after = reach._replace(length=length, run=run, best=best, recent=recent)
    return jax.tree.map(lambda new, old: jnp.where(made, new, old), after, reach)
