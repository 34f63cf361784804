"""Reading what a caller hands in beside a function, its primals and sizes.

Each of these says, at the call, which argument is wrong.
"""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float


def read_real(name: str, value: object, dtype: DTypeLike) -> Float[Array, "..."]:
    """An array of real numbers, in a dtype.

    Raises:
      TypeError: if it is no array, or not of real numbers.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be of real numbers; got {value!r}.") from None
    kinds = jnp.floating, jnp.integer, jnp.bool_
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise TypeError(
            f"{name} must be real; got dtype {array.dtype}. If its imaginary part is "
            f"zero, write jnp.real({name})."
        )
    return array.astype(dtype)


def read_tolerance(tol: object, dtype: DTypeLike) -> Float[Array, ""]:
    """One number of at least 0, in a dtype. What is traced is not known to be that.

    Raises:
      TypeError: if it is no real number.
      ValueError: if it is negative, NaN, or an array with axes.
    """
    array = read_real("tol", tol, dtype)
    if array.ndim:
        raise ValueError(f"tol must be one number; got shape {list(array.shape)}.")
    if not isinstance(tol, Tracer) and not np.asarray(tol) >= 0:
        raise ValueError(f"tol must be at least 0; got {tol}.")
    return array
