"""Ways to ``Σ_ij C_ij ∂²u/∂x_i∂x_j`` at a point: ours, and what else there is.

Each is ``trace(fun, x, weights)``: the trace of the Hessian of a scalar function of a
point ``[D]``, or of ``weights @ Hessian``. What differentiates along one direction at a
time takes the columns of a Cholesky factor of positive definite weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import fomoh_jax
from experiments.benchmarks import ways
from experiments.benchmarks.measurement import OURS

try:
    import folx
except ImportError:  # the extra "benchmarks" has it
    folx = None

FACTORED = f"{OURS}, Cholesky"


def ours(fun: Callable, x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """One pass that carries the sum."""
    return fomoh_jax.laplacian(fun, weights=weights)(x)


def factored(fun: Callable, x: jax.Array, weights: jax.Array) -> jax.Array:
    """One pass in other coordinates, where no sum is weighted."""
    moved = _in_coordinates_of(weights, fun, x)
    return fomoh_jax.laplacian(moved)(jnp.zeros_like(x))


def whole_hessian(fun: Callable, x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The trace of what ``jax.hessian`` gives."""
    hessian = jax.hessian(fun)(x)
    return jnp.trace(hessian) if weights is None else jnp.sum(weights * hessian)


def nested(fun: Callable, x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """``jvp`` of ``jvp`` along every direction."""

    def curvature(v):
        slope = lambda x: jax.jvp(fun, (x,), (v,))[1]
        return jax.jvp(slope, (x,), (v,))[1]

    return jnp.sum(jax.vmap(curvature)(_directions(x, weights)))


def taylor(fun: Callable, x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """``jax.experimental.jet`` along every direction."""
    curvature = lambda v: ways.along_line(fun, (x,), (v,))[2]
    return jnp.sum(jax.vmap(curvature)(_directions(x, weights)))


def forward_laplacian(
    fun: Callable, x: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """Folx, dense: the Jacobian of a dense layer has no zeros for it to find."""
    if folx is None:
        raise ImportError("folx is not installed")
    if weights is None:
        return folx.forward_laplacian(fun, sparsity_threshold=0)(x).laplacian
    moved = _in_coordinates_of(weights, fun, x)  # it knows no weights
    origin = jnp.zeros_like(x)
    return folx.forward_laplacian(moved, sparsity_threshold=0)(origin).laplacian


def _in_coordinates_of(
    weights: jax.Array, fun: Callable, x: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """``fun`` of coordinates around the point in which the weights are the identity."""
    return lambda y: fun(x + y @ _directions(x, weights))


def _directions(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Rows ``v_i`` of which ``Σ_i v_i v_iᵀ`` is the weights, ``[D, D]``."""
    if weights is None:
        return jnp.eye(x.size, dtype=x.dtype)
    return jnp.linalg.cholesky(weights).T


WAYS = {
    OURS: ours,
    FACTORED: factored,  # of weights alone
    "jax.hessian": whole_hessian,
    "nested jvp": nested,
    "jet": taylor,
    "folx": forward_laplacian,
}
