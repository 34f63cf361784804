"""What a solver is, and the guard that all of them stand behind."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fomoh_jax._hyperdual import QuadraticModel


class Solver(NamedTuple):
    """Two pure functions, as a gradient transformation is, and a third if it judges.

    Attributes:
      init: ``init(k) -> state``.
      solve: ``solve(model, gram, state) -> (coefficients, state)``; ``model`` and
        ``gram`` in at least float32, ``coefficients`` of shape ``[k]`` such that the
        step is ``-V @ coefficients``.
      judge: ``judge(predicted, actual, state) -> (accepted, state)``, or ``None``. If
        it is there, the loss is evaluated once more, on the same batch, where the step
        leads; from the reduction that was predicted and the one that came, it says
        whether the step is taken.
    """

    init: Callable[[int], Any]
    solve: Callable[[QuadraticModel, jax.Array, Any], tuple[jax.Array, Any]]
    judge: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]] | None = None


def predicted_reduction(model: QuadraticModel, coefficients: jax.Array) -> jax.Array:
    """``κ·s - ½ κᵀ C κ``, by how much the model falls on a step ``-Vκ``."""
    slope, curvature = model.slope, model.curvature
    return coefficients @ slope - coefficients @ curvature @ coefficients / 2


def guarded(solve: Callable) -> Callable:
    """``solve``, but a zero step and the old state where there is no finite step."""

    def safe(model, gram, state):
        finite = jnp.isfinite(model.value)
        for part in (model.slope, model.curvature, gram):
            finite &= jnp.all(jnp.isfinite(part))
        # A solver must not see what is not finite: a branch not taken spreads it.
        identity = jnp.eye(len(gram), dtype=gram.dtype)
        sound = QuadraticModel(
            jnp.where(finite, model.value, 0),
            jnp.where(finite, model.slope, 0),
            jnp.where(finite, model.curvature, identity),
        )
        coefficients, after = solve(
            sound, jnp.where(finite, gram, identity), _in_dtype(gram.dtype, state)
        )
        finite &= jnp.all(jnp.isfinite(coefficients))
        # In the dtypes that went in, as loops demand.
        after = jax.tree.map(
            lambda new, old: jnp.where(finite, new.astype(old.dtype), old), after, state
        )
        return jnp.where(finite, coefficients, 0).astype(gram.dtype), after

    return safe


def _in_dtype(dtype: Any, state: Any) -> Any:
    """The state with its floating-point numbers in the precision of the model."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )
