"""Errors about what is not of the kind expected, in the same words everywhere."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def wrong_kind(name: str, expected: str, value: object) -> TypeError:
    """An error about an argument of another kind, with a hint if it was not called."""
    hint = " Did you forget to call it?" if callable(value) else ""
    return TypeError(f"{name} must be {expected}; got {value!r}.{hint}")


def check_kind(name: str, value: object, kind: type, such_as: str) -> None:
    """Refuse an argument that is not of a class.

    Raises:
      TypeError: naming the argument, and one of that class.
    """
    if not isinstance(value, kind):
        raise wrong_kind(name, f"a {kind.__name__}, such as {such_as}", value)


def check_real_scalar(who_returns: str, value: PyTree, if_a_tree: str = "") -> None:
    """Refuse what is not one real floating-point scalar.

    Args:
      who_returns: the beginning of the error.
      value: what came.
      if_a_tree: a hint for where it is more or less than one array.

    Raises:
      TypeError: saying what came.
    """
    if jax.tree.structure(value) != jax.tree.structure(0):
        got = f"a tree of structure {jax.tree.structure(value)}.{if_a_tree}"
    else:
        shape, dtype = jnp.shape(value), jnp.result_type(value)
        if shape == () and jnp.issubdtype(dtype, jnp.floating):
            return
        got = f"shape {list(shape)} and dtype {dtype}."
    raise TypeError(f"{who_returns} one real floating-point scalar; got {got}")
