"""Primitives that call a jaxpr: into the inner program, in the same frame."""

from collections.abc import Sequence

import jax

from fomoh_jax.compat import called_jaxpr
from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.interpreter import interpret, staged
from fomoh_jax.hyperdual.number import HyperDual
from fomoh_jax.hyperdual.registry import Operation, rule


@rule("jit", walks_inside=True)
def _jit(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    params = op.params
    function = staged(params["jaxpr"], params["name"], params["inline"])
    return function(form, list(args))


@rule("remat", walks_inside=True)
def _remat(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    jaxpr = op.params["jaxpr"]
    return jax.checkpoint(
        lambda form, args: interpret(jaxpr, form, args),
        prevent_cse=op.params["prevent_cse"],
        policy=op.params["policy"],
    )(form, list(args))


@rule(
    *("call", "closed_call", "composite", "core_call", "custom_partitioning"),
    *("custom_vjp_call", "custom_vmap_call", "xla_metadata_call"),
    walks_inside=True,
)
def _inline(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    # A custom_vjp is seen through: its backward rule says nothing of a forward pass.
    # Nor does a rule for batching or partitioning say anything of derivatives.
    return interpret(called_jaxpr(op.params), form, args)
