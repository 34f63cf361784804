"""The arguments that ``argnums`` names, and results that are shaped like them."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Shaped

from fomoh_jax._hyperdual.arguments import dtype_of
from fomoh_jax._types import PyTreeDef, in_dtype


@dataclasses.dataclass(frozen=True)
class Varied:
    """The arguments that vary.

    Attributes:
      args: tuple of them.
      structure: the tree of the argument, or of the tuple of several.
    """

    args: tuple[PyTree, ...]
    structure: PyTreeDef

    @property
    def leaves(self) -> list[ArrayLike]:
        return jax.tree.leaves(self.args)

    @property
    def size(self) -> int:
        """``D``, the number of elements."""
        return sum(map(jnp.size, self.leaves))

    def pieces(
        self, rows: Shaped[Array, "*out {self.size}"], *, as_argument: bool = True
    ) -> PyTree[Array]:
        """``[*out, D]`` to a tree of ``[*out, *a]``.

        A real number is brought to the dtype of its argument, as in ``jax.grad``, or
        left in that of the output, as in ``jax.jacfwd``.
        """
        cast = _as_argument if as_argument else lambda x, a: x
        return self.structure.unflatten(
            cast(piece.reshape(*rows.shape[:-1], *jnp.shape(a)), a)
            for a, piece in zip(self.leaves, self._split(rows, -1))
        )

    def directions(
        self, vectors: Shaped[Array, "n {self.size}"]
    ) -> list[Shaped[Array, "n ..."]]:
        """``[n, D]`` to ``[n, *leaf]`` for each leaf, in its dtype."""
        return [
            in_dtype(piece.reshape(len(vectors), *jnp.shape(a)), jnp.result_type(a))
            for a, piece in zip(self.leaves, self._split(vectors, -1))
        ]

    def blocks(
        self, matrix: Shaped[Array, "*out {self.size} {self.size}"]
    ) -> PyTree[Array]:
        """``[*out, D, D]`` to a tree of trees of ``[*out, *a, *b]``."""
        lead, leaves = matrix.shape[:-2], self.leaves
        return self.structure.unflatten(
            self.structure.unflatten(
                # As of a gradient, the dtype of a block is that of its first argument.
                _as_argument(block.reshape(*lead, *jnp.shape(a), *jnp.shape(b)), a)
                for b, block in zip(leaves, self._split(rows, -1))
            )
            for a, rows in zip(leaves, self._split(matrix, -2))
        )

    def _split(self, x: Array, axis: int) -> list[Array]:
        """An axis over all the elements, cut into one part for each leaf."""
        offsets = np.cumsum([jnp.size(leaf) for leaf in self.leaves])[:-1]
        return jnp.split(x, offsets, axis)


def _as_argument(x: Array, argument: ArrayLike) -> Array:
    """A real array in the dtype of an argument; a complex one as it is."""
    return x if jnp.iscomplexobj(x) else in_dtype(x, jnp.result_type(argument))


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
        dtype = dtype_of(where, leaf)
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
