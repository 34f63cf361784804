"""Primitives that call a jaxpr: into the inner program, in the same frame."""

import warnings
from collections.abc import Sequence

import jax
from jax.extend import source_info_util

from fomoh_jax._compat import called_jaxpr
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.interpreter import interpret, staged
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.registry import Operation, rule


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


@rule(
    *("call", "closed_call", "composite", "core_call", "custom_partitioning"),
    *("custom_vjp_call", "custom_vmap_call", "xla_metadata_call"),
)
def _inline(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    # A custom_vjp is seen through: its backward rule says nothing of a forward pass.
    # Nor does a rule for batching or partitioning say anything of derivatives.
    outs = interpret(called_jaxpr(op.params), form, args)
    if op.primitive.name == "custom_vjp_call":
        _warn_without_derivative(outs)
    return outs


def _warn_without_derivative(outs: Sequence[HyperDual]) -> None:
    """Say that a custom_vjp, seen through, leaves nothing of a derivative.

    A straight-through estimator is one: its derivative is in its backward rule.
    """
    carrying = [out for out in outs if is_inexact(out.primal)]
    if carrying and all(out.is_constant for out in carrying):
        line = source_info_util.summarize(source_info_util.current())
        warnings.warn(
            "fomoh_jax sees through a jax.custom_vjp, since a forward pass has no use "
            "for a backward rule. The function inside "
            f"{line and f'the one at {line} '}has no derivative, and counts as a "
            "constant. If it is to have one, as a straight-through estimator has, "
            "define it by jax.custom_jvp.",
            UserWarning,
            stacklevel=2,
        )
