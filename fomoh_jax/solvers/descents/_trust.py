"""The minimum of the model within a radius."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fomoh_jax import _gram_metric
from fomoh_jax.solvers._solver import Descent, Step

# Halvings of the interval of the multiplier: enough for float64.
_BISECTIONS = 64
# Of CUTEst's problems, a maximum that keeps 0.97 or more of itself a step loses DJTL,
# which starts on a cliff, and one that keeps a half loses HAHN1LS.
_KEPT = 0.9


class TrustState(NamedTuple):
    """State of ``trust(scaled=True)``.

    Attributes:
      curvature: ``[k]``, the decaying maximum of the absolute curvature along each
        direction, divided by its squared length; 0 before the first step.
    """

    curvature: Float[Array, " k"]


def trust(radius: float = 1.0, *, scaled: bool = False) -> Descent:
    r"""The minimum of the model within a radius, exactly.

    .. math:: \min_\kappa\; -\kappa^\top s + \tfrac12 \kappa^\top C \kappa
      \quad \text{where} \quad \kappa^\top S V^\top V S \kappa \le (\eta r)^2

    for a step of size :math:`\eta`, the one that the search chooses, and
    :math:`S = I`, unless the radius is scaled. See
    :func:`fomoh_jax.solvers.trust_region`.

    Args:
      radius: :math:`r`, the radius for a step of size 1, in the units of the
        parameters (of their geometric mean, if it is scaled); positive.
      scaled: whether the length of a step counts more along directions with much
        curvature. :math:`S_{ii}^2` is then :math:`m_i` divided by the geometric mean of
        all :math:`m_j`, where :math:`m_i` is the largest :math:`|C_{ii}| / |v_i|^2` of
        the steps so far, decayed by a factor of 0.9 at each step. Directions without
        curvature, or with no more than rounding hides beside the largest, are left out
        of the mean, and scaled as the flattest of the others.

    Returns:
      A descent.

    Raises:
      ValueError: if ``radius`` is not positive; from ``step``, if the state is one of
        another number of directions.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel
      >>> from fomoh_jax.solvers import Solver, descents, searches
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([3.0]), jnp.array([[2.0]]))
      >>> solver = Solver(descents.trust(0.5), searches.constant())
      >>> print(solver.solve(model, jnp.eye(1), solver.init(1))[0])
      [0.5]

    References:
      Moré and Sorensen, *Computing a trust region step*, 1983; Moré, *The
      Levenberg–Marquardt algorithm: implementation and theory*, 1978 (the scaling).
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive; got {radius}.")

    def step(model, gram, size, last, state):
        metric = gram
        if scaled:
            _check_number(state, len(gram))
            lengths = _gram_metric.unit_scale(gram)
            here = lengths * jnp.abs(jnp.diagonal(model.curvature)) * lengths
            state = TrustState(jnp.maximum(_KEPT * state.curvature, here))
            scale = _relative_scale(state.curvature)
            metric = scale[:, None] * gram * scale[None]
        eigenvalues, basis = _gram_metric.in_metric(model.curvature, metric)
        step = _step_within(radius * size, basis.T @ model.slope, eigenvalues)
        # A column of the basis that is zero is no direction: nothing moves along it.
        step = jnp.where(jnp.any(basis != 0, axis=0), step, 0)
        coefficients, used = basis @ step, jnp.linalg.norm(step)
        length = _gram_metric.length(coefficients, gram) if scaled else used
        return Step(coefficients, length, used / radius), state

    if not scaled:
        return Descent(step)
    init = lambda k: TrustState(jnp.zeros(k, jnp.result_type(float)))
    return Descent(step, init)


def _check_number(state: TrustState, k: int) -> None:
    (of_state,) = state.curvature.shape
    if of_state != k:
        raise ValueError(
            f"the state of trust(scaled=True) is of {of_state} directions, and the "
            f"model of {k}; begin with init({k})."
        )


def _relative_scale(curvature: Float[Array, " k"]) -> Float[Array, " k"]:
    """The roots of curvatures over their geometric mean; 1 where there are none."""
    counts = curvature > _gram_metric.rounding(curvature)
    logarithms = jnp.log(jnp.where(counts, curvature, 1))
    number = jnp.maximum(jnp.sum(counts, dtype=curvature.dtype), 1)
    mean = jnp.sum(logarithms) / number
    flattest = jnp.min(jnp.where(counts, logarithms, jnp.inf))
    flattest = jnp.where(jnp.any(counts), flattest, 0)
    return jnp.exp((jnp.where(counts, logarithms, flattest) - mean) / 2)


def _step_within(
    radius: Float[Array, ""], slope: Float[Array, " k"], eigenvalues: Float[Array, " k"]
) -> Float[Array, " k"]:
    """The minimum of ``-z·slope + ½ Σ λ z²`` over ``|z| <= radius``."""
    tiny = jnp.finfo(slope.dtype).tiny
    lowest = eigenvalues[0]
    flat = _gram_metric.rounding(jnp.abs(eigenvalues))[0]

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
