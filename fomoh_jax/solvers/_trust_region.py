"""Newton's step within a radius that the loss itself widens and narrows."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fomoh_jax._metric import in_metric, rounding
from fomoh_jax.solvers._protocol import Solver, guarded, predicted_reduction

# How a gain ratio moves the radius (Nocedal and Wright, algorithm 4.1).
_POOR, _GOOD, _SHRINK, _GROW = 0.25, 0.75, 0.25, 2.0
# Halvings of the interval of the multiplier: enough for float64.
_BISECTIONS = 64


class TrustRegionState(NamedTuple):
    """State of :func:`trust_region`.

    Attributes:
      radius: how long the next step may be, in the units of the parameters.
      length: of the last step.
      last_value: the loss that the last step started from; 0 before the first.
      predicted: by how much the model fell on the last step.
      gain: actual over predicted reduction when last measured, 0 before; -1 where the
        loss was not finite, or the model did not fall.
      accepted: how many steps were taken, int32.
      rejected: how many were not, int32.
    """

    radius: jax.Array
    length: jax.Array
    last_value: jax.Array
    predicted: jax.Array
    gain: jax.Array
    accepted: jax.Array
    rejected: jax.Array


def trust_region(
    radius: float = 1.0,
    *,
    max_radius: float = 1e6,
    measured_on: Literal["same", "next"] = "same",
) -> Solver:
    r"""The minimum of the model within a radius, exactly.

    .. math:: \min_\kappa\; -\kappa^\top s + \tfrac12 \kappa^\top C \kappa
      \quad \text{where} \quad \kappa^\top V^\top V \kappa \le r^2

    Solved by the eigenvalues of the curvature in the metric :math:`V^\top V`: the
    step is Newton's where that is a minimum and short enough, and otherwise the
    :math:`(C + \mu V^\top V)^{-1} s` of length :math:`r`, also in the hard case, where
    the slope does not see the direction of most negative curvature.

    The radius follows the gain, the reduction of the loss over that of the model: it is
    divided by 4 when that is below 1/4, and doubled when it is above 3/4 and the step
    was as long as it could be. The step has to be taken whole: use a learning rate of
    1 after it.

    Args:
      radius: the first radius, in the units of the parameters; positive.
      max_radius: no radius is larger; at least ``radius``.
      measured_on: ``"same"`` evaluates the loss at the end of the step, on the same
        batch, by one more forward pass, and takes no step that raises it by more than
        rounding: for losses that are the same at each step. ``"next"`` takes every
        step, and judges it by the value of the next model, on another batch.

    Returns:
      A solver, whose state is a :class:`TrustRegionState`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([3.0, 4.0]), jnp.eye(2))
      >>> solver = solvers.trust_region(1.0)
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)  # Newton's step, of length 5, cut
      [0.6 0.8]

    References:
      Moré and Sorensen, *Computing a trust region step*, 1983; Nocedal and Wright,
      *Numerical Optimization*, 2006, algorithm 4.1.
    """
    if not 0 < radius <= max_radius:
        raise ValueError(
            "trust_region needs 0 < radius <= max_radius; got "
            f"radius={radius}, max_radius={max_radius}."
        )
    if measured_on not in ("same", "next"):
        raise ValueError(f'measured_on must be "same" or "next"; got {measured_on!r}.')

    def init(k):
        dtype = jnp.result_type(float)
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        start = jnp.array(radius, dtype)
        return TrustRegionState(start, zero, zero, zero, zero, none, none)

    def judge(predicted, actual, state):
        # Near the minimum both reductions are rounding.
        value = state.last_value.astype(predicted.dtype)
        noise = 10 * jnp.finfo(predicted.dtype).eps * jnp.abs(value)
        agree = (jnp.abs(actual - predicted) <= noise) & (predicted >= -noise)
        sound = jnp.where(predicted > 0, predicted, 1)
        # A model that rises, by rounding, has nothing to be compared with.
        known = (predicted > 0) & jnp.isfinite(actual)
        gain = jnp.where(known, actual / sound, -1.0)
        gain = jnp.where(agree, 1.0, gain)
        whole = state.length >= 0.99 * state.radius
        wider = jnp.minimum(_GROW * state.radius, max_radius)
        after = jnp.where(
            gain < _POOR,
            _SHRINK * jnp.minimum(state.length, state.radius),
            jnp.where((gain > _GOOD) & whole, wider, state.radius),
        )
        accepted = gain > 0
        return accepted, state._replace(
            radius=after.astype(state.radius.dtype),
            gain=gain.astype(state.gain.dtype),
            accepted=state.accepted + accepted.astype(state.accepted.dtype),
            rejected=state.rejected + (~accepted).astype(state.rejected.dtype),
        )

    def solve(model, gram, state):
        if measured_on == "next":
            _, judged = judge(state.predicted, state.last_value - model.value, state)
            judged = judged._replace(
                accepted=state.accepted + 1, rejected=state.rejected
            )
            stepped = state.length > 0
            state = jax.tree.map(lambda a, b: jnp.where(stepped, a, b), judged, state)
        eigenvalues, basis = in_metric(model.curvature, gram)
        step = _step_within(state.radius, basis.T @ model.slope, eigenvalues)
        # A column of the basis that is zero is no direction: nothing moves along it.
        step = jnp.where(jnp.any(basis != 0, axis=0), step, 0)
        coefficients = basis @ step
        return coefficients, state._replace(
            length=jnp.linalg.norm(step),
            last_value=model.value,
            predicted=predicted_reduction(model, coefficients),
        )

    return Solver(init, guarded(solve), judge if measured_on == "same" else None)


def _step_within(
    radius: jax.Array, slope: jax.Array, eigenvalues: jax.Array
) -> jax.Array:
    """The minimum of ``-z·slope + ½ Σ λ z²`` over ``|z| <= radius``."""
    radius = radius.astype(slope.dtype)
    tiny = jnp.finfo(slope.dtype).tiny
    lowest = eigenvalues[0]
    flat = rounding(jnp.abs(eigenvalues))[0]

    # What is four radii long is outside, and as good as what is infinitely long.
    least = jnp.minimum(jnp.abs(slope) / (4 * radius), jnp.finfo(slope.dtype).max)

    def at(multiplier):
        shifted = jnp.maximum(eigenvalues + multiplier, jnp.maximum(least, tiny))
        return slope / shifted

    def length(multiplier):
        # Scaled, so that the squares of a huge step do not overflow.
        step = at(multiplier)
        largest = jnp.maximum(jnp.max(jnp.abs(step)), tiny)
        return largest * jnp.linalg.norm(step / largest)

    low = jnp.maximum(0, -lowest)
    # There every component is at most its slope over the rest: within the radius.
    # (At most √k times the largest: the square of a huge slope would overflow.)
    high = low + math.sqrt(len(slope)) * jnp.max(jnp.abs(slope)) / radius

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        outside = length(middle) > radius
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    _, multiplier = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    edge = at(multiplier)
    # With negative curvature the minimum is on the edge. What the other components
    # leave of the radius belongs to the lowest, whatever its slope is (the hard case).
    rest = jnp.linalg.norm(edge[1:])
    remainder = jnp.sqrt(jnp.maximum(radius**2 - rest**2, 0))
    deepest = jnp.where(slope[0] < 0, -remainder, remainder)
    edge = jnp.where(lowest < -flat, edge.at[0].set(deepest), edge)
    inside = (lowest > flat) & (length(0.0) <= radius)
    return jnp.where(inside, at(jnp.zeros_like(low)), edge)
