"""Types that the signatures of the library share."""

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from jax.core import AbstractValue
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, DTypeLike, Shaped

Program: TypeAlias = Jaxpr | ClosedJaxpr

if TYPE_CHECKING:
    # JAX tells a type checker nothing of the first, and of the second no shape.
    PyTreeDef: TypeAlias = Any
    Aval: TypeAlias = Any
    Leaf: TypeAlias = jax.Array
else:
    from jax.tree_util import PyTreeDef  # noqa: F401

    # The type of a value in an equation: its shape and dtype, or that of a token.
    Aval = AbstractValue | jax.ShapeDtypeStruct
    # A leaf of a number. JAX makes numbers of whatever a function of their leaves
    # returns: types, specifications.
    Leaf = Any


def in_dtype(x: Shaped[Array, "*s"], dtype: DTypeLike) -> Shaped[Array, "*s"]:
    """``x`` in a dtype. (``astype`` its own would make a weak type strong.)"""
    return x if x.dtype == dtype else x.astype(dtype)
