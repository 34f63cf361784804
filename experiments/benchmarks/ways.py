"""Ways to the quadratic model of a loss: ours, and what plain JAX offers.

Each turns ``loss(params, *data)`` into ``model(params, directions, *data)``, which
returns the value, the k slopes and the k×k curvature.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import jet

import fomoh_jax
from fomoh_jax import plans


def ours(loss: Callable, plan: plans.Plan | None = None) -> Callable:
    """By a plan, or by the forward pass that carries all pairs of directions."""
    plan = plans.forward() if plan is None else plan

    def model(params, directions, *data):
        fixed = (None,) * len(data)
        return fomoh_jax.quadratic_model(
            loss,
            (params, *data),
            (directions, *fixed),
            plan=plan,
        )

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
