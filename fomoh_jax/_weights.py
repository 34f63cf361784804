"""The weights ``C`` of a trace ``tr(C H)``, as callers give them."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Real


def check_not_both(
    name: str, weights: ArrayLike | None, factor: ArrayLike | None
) -> None:
    """Refuse weights and their factor together.

    Raises:
      ValueError: if both are given.
    """
    if weights is not None and factor is not None:
        raise ValueError(
            f"{name} takes weights or their factor, weights = factor @ factor.T, and "
            "not both."
        )


def read_weights(
    weights: ArrayLike, size: int, *, diagonal: bool = False
) -> Real[Array, "..."]:
    """``[D]`` or, unless they must be a diagonal, symmetric ``[D, D]``.

    Raises:
      TypeError: if they are not of real numbers.
      ValueError: if they have another shape.
    """
    weights = _real("weights", weights)
    if weights.shape == (size,):
        return weights
    if weights.shape == (size, size) and not diagonal:
        return (weights + weights.T) / 2
    matrix = "" if diagonal else f", or {[size, size]}, a row and a column for each"
    raise ValueError(
        f"weights must have shape {[size]}, an entry for each element of the "
        f"differentiated arguments{matrix}; got shape {list(weights.shape)}."
    )


def read_factor(factor: ArrayLike, size: int) -> Real[Array, "{size} r"]:
    """``[D, r]``.

    Raises:
      TypeError: if it is not of real numbers.
      ValueError: if it has another shape.
    """
    factor = _real("factor", factor)
    if factor.ndim != 2 or len(factor) != size:
        raise ValueError(
            f"factor must have shape [{size}, r], a row for each element of the "
            "differentiated arguments and a column for each direction; got shape "
            f"{list(factor.shape)}."
        )
    return factor


def _real(name: str, x: ArrayLike) -> Real[Array, "..."]:
    array = jnp.asarray(x)
    if jnp.iscomplexobj(array) or array.dtype == bool:
        raise TypeError(
            f"{name} must be an array of real numbers; got dtype {array.dtype}."
        )
    return array
