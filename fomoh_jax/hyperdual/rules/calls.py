"""Primitives that call a jaxpr: into the inner program, in the same frame."""

from collections.abc import Sequence

import jax

from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.interpreter import interpret, staged
from fomoh_jax.hyperdual.number import HyperDual
from fomoh_jax.hyperdual.registry import Operation, rule


@rule("jit")
def _jit(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    params = op.params
    function = staged(params["jaxpr"], params["name"], params["inline"])
    return function(form, list(args))


@rule("remat")
def _remat(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    jaxpr = op.params["jaxpr"]
    return jax.checkpoint(
        lambda form, args: interpret(jaxpr, form, args),
        prevent_cse=op.params["prevent_cse"],
        policy=op.params["policy"],
    )(form, list(args))


# Under which parameter an equation keeps the program that it calls. A custom_vjp is
# seen through, since its backward rule says nothing of a forward pass; nor does a
# batching rule (custom_vmap), or a partitioning one, say anything of derivatives.
_INNER = {
    "call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "composite": "jaxpr",
    "core_call": "call_jaxpr",
    "custom_partitioning": "call",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "xla_metadata_call": "jaxpr",
}


@rule(*_INNER)
def _inline(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    return interpret(op.params[_INNER[op.primitive.name]], form, args)
