"""Ways to second derivatives: ours and others.

The first compute the quadratic model of a loss. Each turns ``loss(params, *data)`` into
``model(params, directions, *data)``, which returns the value, the k slopes and the k×k
curvature.

Those of ``TRACES`` compute ``Σ_ij C_ij ∂²u/∂x_i∂x_j`` at a point. Each is
``trace(fun, x, weights)``: the trace of the Hessian of a scalar function of a point
``[D]``, or of ``weights @ Hessian``. Ways that differentiate along one direction at
a time take the columns of a Cholesky factor of positive definite weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import jet

import fomoh_jax
from experiments.benchmarks.measurement import OURS
from fomoh_jax import plans

try:
    import folx
except ImportError:  # the extra "benchmarks" has it
    folx = None


def ours(loss: Callable, plan: plans.Plan | None = None) -> Callable:
    """Our model by a plan, by default the forward pass with all pairs of directions."""
    plan = plans.forward() if plan is None else plan

    def model(params, directions, *data):
        args, along = (params, *data), (directions, *[None] * len(data))
        return fomoh_jax.quadratic_model(loss, args, along, plan=plan)

    return model


def nested(loss: Callable) -> Callable:
    """The best nesting: the value and the slopes are shared by all the pairs."""

    def model(params, directions, *data):
        def slopes(params):
            along = lambda v: jax.jvp(lambda p: loss(p, *data), (params,), (v,))
            return jax.vmap(along, out_axes=(None, 0))(directions)

        along = lambda v: jax.jvp(slopes, (params,), (v,))
        (value, slope), (_, curvature) = jax.vmap(along, out_axes=((None, None), 0))(
            directions
        )
        return value, slope, curvature

    return model


def nested_pairs(loss: Callable) -> Callable:
    """``jvp`` of ``jvp`` of one pair of directions, vmapped over the pairs."""

    def model(params, directions, *data):
        def pair(u, v):
            slope = lambda p: jax.jvp(lambda p: loss(p, *data), (p,), (v,))
            (value, _), (slope_u, curvature) = jax.jvp(slope, (params,), (u,))
            return value, slope_u, curvature

        row = jax.vmap(pair, in_axes=(None, 0), out_axes=(None, None, 0))
        rows = jax.vmap(row, in_axes=(0, None), out_axes=(None, 0, 0))
        return rows(directions, directions)

    return model


def forward_over_reverse(loss: Callable) -> Callable:
    """Hessian-vector products by ``jvp`` of the gradient, then inner products."""

    def model(params, directions, *data):
        gradient = jax.value_and_grad(lambda p: loss(p, *data))
        product = lambda v: jax.jvp(gradient, (params,), (v,))
        (value, _), (slope, products) = jax.vmap(product, out_axes=((None, None), 0))(
            directions
        )
        return value, slope, _inner_products(products, directions)

    return model


def taylor(loss: Callable) -> Callable:
    """``jax.experimental.jet`` along one direction."""

    def model(params, directions, *data):
        leaves, structure = jax.tree.flatten(params)
        value, slope, curvature = along_line(
            lambda *leaves: loss(structure.unflatten(leaves), *data),
            leaves,
            [v[0] for v in jax.tree.leaves(directions)],
        )
        return value, slope[None], curvature[None, None]

    return model


def along_line(fun: Callable, primals: Any, tangents: Any) -> Any:
    """Value and two derivatives along a straight line, by ``jax.experimental.jet``."""
    straight = [(v, jnp.zeros_like(v)) for v in tangents]
    value, (slope, curvature) = jet.jet(fun, primals, straight)
    return value, slope, curvature


def _inner_products(a: Any, b: Any) -> jax.Array:
    """``[k, k]`` inner products of two stacks of pytrees."""
    rows = lambda x: x.reshape(len(x), -1)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return sum(rows(x) @ rows(y).T for x, y in pairs)


FACTORED = f"{OURS}, Cholesky"


def laplacian(fun: Callable, x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The trace by one pass that carries the sum."""
    return fomoh_jax.laplacian(fun, weights=weights)(x)


def whole_hessian(fun: Callable, x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The trace of the whole Hessian by ``jax.hessian``."""
    hessian = jax.hessian(fun)(x)
    return jnp.trace(hessian) if weights is None else jnp.sum(weights * hessian)


def curvature_by_jvp(fun: Callable, x: jax.Array, v: jax.Array) -> jax.Array:
    """The curvature along a direction by ``jvp`` of ``jvp``."""
    slope = lambda x: jax.jvp(fun, (x,), (v,))[1]
    return jax.jvp(slope, (x,), (v,))[1]


def curvature_by_jet(fun: Callable, x: jax.Array, v: jax.Array) -> jax.Array:
    """The curvature along a direction by ``jax.experimental.jet``."""
    return along_line(fun, (x,), (v,))[2]


def forward_laplacian(fun: Callable) -> Callable:
    """Folx, dense: the Jacobian of a dense layer has no zeros for it to find."""
    if folx is None:
        raise ImportError("folx is not installed")
    forward = folx.forward_laplacian(fun, sparsity_threshold=0)
    return lambda x: forward(x).laplacian


def along_every(curvature: Callable) -> Callable:
    """A trace as the sum of the curvatures along each direction."""
    return lambda fun, x, weights: jnp.sum(
        jax.vmap(lambda v: curvature(fun, x, v))(_directions(x, weights))
    )


def in_coordinates(transform: Callable) -> Callable:
    """A trace by a way without weights, in coordinates where they are the identity."""

    def trace(fun, x, weights):
        if weights is None:
            return transform(fun)(x)
        moved = lambda y: fun(x + y @ _directions(x, weights))
        return transform(moved)(jnp.zeros_like(x))

    return trace


def _directions(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Rows ``v_i`` of which ``Σ_i v_i v_iᵀ`` is the weights, ``[D, D]``."""
    if weights is None:
        return jnp.eye(x.size, dtype=x.dtype)
    return jnp.linalg.cholesky(weights).T


TRACES = {
    OURS: laplacian,
    FACTORED: in_coordinates(fomoh_jax.laplacian),  # of weights alone
    "jax.hessian": whole_hessian,
    "nested jvp": along_every(curvature_by_jvp),
    "jet": along_every(curvature_by_jet),
    "folx": in_coordinates(forward_laplacian),
}
