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
from fomoh_jax._hyperdual.number import in_dtype
from fomoh_jax._types import PyTreeDef


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

    def pieces(self, rows: Shaped[Array, "*out {self.size}"]) -> PyTree[Array]:
        """``[*out, D]`` to a tree of ``[*out, *a]``."""
        return self.structure.unflatten(
            in_dtype(piece.reshape(*rows.shape[:-1], *jnp.shape(a)), jnp.result_type(a))
            for a, piece in zip(self.leaves, self._split(rows, -1))
        )

    def blocks(
        self, matrix: Shaped[Array, "*out {self.size} {self.size}"]
    ) -> PyTree[Array]:
        """``[*out, D, D]`` to a tree of trees of ``[*out, *a, *b]``."""
        lead, leaves = matrix.shape[:-2], self.leaves
        return self.structure.unflatten(
            self.structure.unflatten(
                # As of a gradient, the dtype of a block is that of its first argument.
                in_dtype(
                    block.reshape(*lead, *jnp.shape(a), *jnp.shape(b)),
                    jnp.result_type(a),
                )
                for b, block in zip(leaves, self._split(rows, -1))
            )
            for a, rows in zip(leaves, self._split(matrix, -2))
        )

    def _split(self, x: Array, axis: int) -> list[Array]:
        """An axis over all the elements, cut into one part for each leaf."""
        offsets = np.cumsum([jnp.size(leaf) for leaf in self.leaves])[:-1]
        return jnp.split(x, offsets, axis)


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
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} needs real floating-point arguments; {where} has dtype "
                f"{dtype}."
            )
