"""Convolutions with their axes in the order in which XLA's CPU backend is fast.

The gradient of a convolution by its kernel is a convolution whose axes are permuted:
the examples are contracted, and the features are examples. XLA's CPU backend puts them
in order only in a program's outermost computation. In a ``lax.scan`` over steps, or a
``lax.cond``, it takes a loop over single elements instead, some ten times as slow for
the CNN of ``experiments.benchmarks gradient``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array, PyTree

from fomoh_jax._activations.program import CHECKPOINTS, flattened
from fomoh_jax._compat import called_jaxpr, open_jaxpr
from fomoh_jax._hyperdual.jaxprs import bind, eval_jaxpr
from fomoh_jax._types import Leaf

CONVOLUTION = "conv_general_dilated"


def with_axes_in_order(fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, with each of its convolutions from NHWC and HWIO to NHWC.

    Those inside ``jax.checkpoint`` too; those in loops and branches stay as they are.
    """

    def ordered(*args: PyTree) -> PyTree:
        program, shapes = flattened(fun, *args)
        results = eval_jaxpr(program, jax.tree.leaves(args), _applied)
        return jax.tree.structure(shapes).unflatten(results)

    return ordered


def _applied(eqn: JaxprEqn, operands: list[Leaf]) -> list[Leaf]:
    if eqn.primitive.name == CONVOLUTION and not eqn.params["out_sharding"]:
        return [_in_order(eqn, *operands)]
    if eqn.primitive.name in CHECKPOINTS:
        eqn = _with_axes_in_order(eqn)
    return bind(eqn, operands)


def _with_axes_in_order(eqn: JaxprEqn) -> JaxprEqn:
    """A checkpointed program whose convolutions are in order."""
    inside = ClosedJaxpr(*open_jaxpr(called_jaxpr(eqn.params)))
    ordered = with_axes_in_order(jaxpr_as_fun(inside))
    program = jax.make_jaxpr(ordered)(*inside.in_avals)
    if program.consts:
        return eqn
    return eqn.replace(params=eqn.params | {"jaxpr": program.jaxpr})


def _in_order(eqn: JaxprEqn, inputs: Array, kernel: Array) -> Array:
    params: dict[str, Any] = dict(eqn.params)
    axes = params.pop("dimension_numbers")
    examples, features, *space = axes.lhs_spec
    out, into, *window = axes.rhs_spec
    last = len(space) + 1
    standard = lax.ConvDimensionNumbers(
        _features_last(last), (last, last - 1, *range(last - 1)), _features_last(last)
    )
    result = lax.conv_general_dilated(
        lax.transpose(inputs, (examples, *space, features)),
        lax.transpose(kernel, (*window, into, out)),
        dimension_numbers=standard,
        **params,
    )
    examples, features, *space = axes.out_spec
    return lax.transpose(result, np.argsort((examples, *space, features)))


def _features_last(last: int) -> Sequence[int]:
    """The axes of examples, features and space, in this order, if features are last."""
    return (0, last, *range(1, last))
