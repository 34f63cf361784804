"""The arguments that ``argnums`` names."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fomoh_jax._hyperdual.arguments import check_array
from fomoh_jax._varied import Varied


def restricted(
    name: str,
    fun: Callable,
    argnums: int | Sequence[int],
    args: Sequence[PyTree],
    kwargs: dict[str, Any],
) -> tuple[Callable, Varied]:
    """``fun`` as a function of the arguments that vary alone, and these.

    Raises:
      TypeError: if one of them is not of real floating-point numbers; ``name`` is who
        says so.
      ValueError: if ``argnums`` is out of range, or names an argument twice.
    """
    several = isinstance(argnums, Sequence)
    places = [_normalised(i, len(args)) for i in (argnums if several else [argnums])]
    if len(set(places)) < len(places):
        raise ValueError(f"argnums names an argument twice; got {argnums}.")
    varied = tuple(args[i] for i in places)
    for i, arg in zip(places, varied):
        _check_real(name, i, arg)

    def function(*xs):
        full = list(args)
        for i, x in zip(places, xs):
            full[i] = x
        return fun(*full, **kwargs)

    return function, Varied(
        varied, jax.tree.structure(varied if several else varied[0])
    )


def _normalised(argnum: int, count: int) -> int:
    argnum = operator.index(argnum)
    if not -count <= argnum < count:
        raise ValueError(
            f"argnums names argument {argnum}, but the function was called with "
            f"{count} positional arguments."
        )
    return argnum % count


def _check_real(name: str, index: int, arg: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arg):
        where = f"argument {index}{jax.tree_util.keystr(path)}"
        check_array(where, leaf)
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} needs real arguments; {where} has dtype {dtype}. "
                "Differentiate with respect to its real and imaginary parts: "
                "lambda re, im: fun(re + 1j * im), with argnums=(0, 1)."
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} needs real floating-point arguments; {where} has dtype "
                f"{dtype}."
            )
