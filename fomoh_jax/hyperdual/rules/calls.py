"""Primitives that call a jaxpr: into the inner program, in the same frame."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax

from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.interpreter import interpret
from fomoh_jax.hyperdual.number import HyperDual
from fomoh_jax.hyperdual.registry import Operation, rule


@lru_cache(maxsize=512)
def _staged(jaxpr: Any, name: str, inline: Any) -> Callable:
    """A jitted interpretation of a jaxpr.

    Cached, because JAX traces a jitted function once and gives every later call the
    same jaxpr: a layer that is called many times is interpreted once. Which channels
    are zero and where their axes are is in the tree of the arguments, which jit itself
    tells apart.
    """

    def hyperdual(form: Form, args: Sequence[HyperDual]) -> list[HyperDual]:
        return interpret(jaxpr, form, args)

    hyperdual.__name__ = hyperdual.__qualname__ = f"hyperdual_{name}"
    return jax.jit(hyperdual, inline=inline)


@rule("jit")
def _jit(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    params = op.params
    staged = _staged(params["jaxpr"], params["name"], params["inline"])
    return staged(form, list(args))


@rule("remat")
def _remat(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    jaxpr = op.params["jaxpr"]
    return jax.checkpoint(
        lambda form, args: interpret(jaxpr, form, args),
        prevent_cse=op.params["prevent_cse"],
        policy=op.params["policy"],
    )(form, list(args))


@rule("call", "closed_call", "core_call", "custom_vjp_call")
def _inline(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    # A custom_vjp is seen through: its backward rule says nothing of a forward pass.
    jaxpr = op.params["call_jaxpr"]
    return interpret(jaxpr, form, args)
