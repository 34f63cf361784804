"""Primitives that are one operation many times: the program of their steps instead.

A product of many numbers has a second derivative along every pair of them. Written out
as a tree of products it needs no rule of its own, and every node of the tree shares its
tangents among all the pairs of directions.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.inlining import inlined
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.registry import Operation, rule


def rewritten(
    program: Callable, form: Form, args: Sequence[HyperDual]
) -> list[HyperDual]:
    """The results of a program instead of an operation."""
    jaxpr = jax.make_jaxpr(program)(*(arg.primal for arg in args))
    return interpret(inlined(jaxpr), form, args)


def _cumulative(operation: Callable) -> Callable:
    def cumulative(form: Form, op: Operation, args: Sequence[HyperDual]):
        axis, reverse = op.params["axis"], op.params["reverse"]
        program = partial(lax.associative_scan, operation, reverse=reverse, axis=axis)
        return rewritten(program, form, args)

    return cumulative


rule("cumprod")(_cumulative(lax.mul))
rule("cumlogsumexp")(_cumulative(jnp.logaddexp))


@rule("reduce_prod")
def _reduce_prod(form: Form, op: Operation, args: Sequence[HyperDual]):
    axes = tuple(map(int, op.params["axes"]))
    return rewritten(partial(_product, axes=axes), form, args)


def _product(x: Array, axes: Sequence[int]) -> Array:
    """The product over some axes, by halves."""
    x = jnp.moveaxis(x, axes, range(len(axes)))
    x = x.reshape(math.prod(x.shape[: len(axes)]), *x.shape[len(axes) :])
    while len(x) > 1:
        half = len(x) // 2
        rest = x[2 * half :]
        x = jnp.concatenate([x[:half] * x[half : 2 * half], rest])
    return x[0] if len(x) else jnp.ones(x.shape[1:], x.dtype)
