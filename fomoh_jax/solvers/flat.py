"""How far to go where the model has slopes and no curvature.

The loss of a median, a quantile or a support vector machine is piecewise linear. Its
model has no minimum, and the curvature does not say how far to go. What does is whether
the steps made so far have lowered the loss as their slopes said.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fomoh_jax.hyperdual import QuadraticModel
from fomoh_jax.solvers.protocol import predicted_reduction

# The first step is to win this part of the loss, if the slope holds.
_FIRST = 0.05
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


class Reach(NamedTuple):
    """How far steps without curvature go.

    Attributes:
      length: of the next one, in the units of the parameters; 0 before the first.
      run: how many predictions in a row have come true, or minus how many have not,
        int32.
      best: the best ratio of actual to predicted reduction of late. A learning rate
        behind the solver makes it smaller than 1.
      recent: ``[2, 2]``, two sums over the last steps of the actual and of the
        predicted reduction.
      last_value: the loss that the last step started from.
      predicted: by how much the model fell on the last step; 0 if it was none.
    """

    length: jax.Array
    run: jax.Array
    best: jax.Array
    recent: jax.Array
    last_value: jax.Array
    predicted: jax.Array


def no_reach() -> Reach:
    """The state before the first step."""
    zeros = lambda: jnp.zeros((), jnp.result_type(float))
    none, two = jnp.zeros((), jnp.int32), jnp.zeros((2, 2), jnp.result_type(float))
    return Reach(zeros(), none, zeros(), two, zeros(), zeros())


def learned(reach: Reach, value: jax.Array, slope: jax.Array) -> Reach:
    """The reach after the loss of the next model, whose flat slope has this length."""
    known = reach.predicted > 0
    fell = jnp.stack([reach.last_value - value, reach.predicted])
    recent = jnp.array(_RECENT, value.dtype)[:, None] * reach.recent + fell[None]
    ratio, longer = recent[:, 0] / jnp.where(known, recent[:, 1], 1)
    best = jnp.maximum(_FORGET * reach.best, jnp.clip(longer, 0, 1))
    true = (ratio > 0) & (ratio >= _TRUE * best)
    run = jnp.where(true, jnp.maximum(reach.run, 0) + 1, jnp.minimum(reach.run, 0) - 1)
    factor = 1 + _RATE * jnp.abs(run).astype(value.dtype)
    length = reach.length * jnp.where(true, factor, 1 / factor)
    first = _FIRST * jnp.abs(value) / jnp.where(slope > 0, slope, 1)
    keep = lambda new, old: jnp.where(known, new, old)
    length = keep(length, reach.length)
    return reach._replace(
        length=jnp.where(length > 0, length, first),
        run=keep(run, reach.run),
        best=keep(best, reach.best),
        recent=keep(recent, reach.recent),
    )


def started(reach: Reach, model: QuadraticModel, coefficients: jax.Array) -> Reach:
    """The reach when a step is made."""
    predicted = predicted_reduction(model, coefficients)
    return reach._replace(last_value=model.value, predicted=predicted)


def flat_step(
    reach: Reach, value: jax.Array, slope: jax.Array
) -> tuple[jax.Array, Reach]:
    """The step along a slope ``[k]`` in an orthonormal basis, and what was learned.

    Downhill, as far as the reach; none where it would win no more than rounding.
    """
    size = jnp.linalg.norm(slope)
    reach = learned(reach, value, size)
    hidden = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    goes = (size > 0) & (reach.length * size > hidden)
    return jnp.where(
        goes, reach.length / jnp.where(size > 0, size, 1), 0
    ) * slope, reach
