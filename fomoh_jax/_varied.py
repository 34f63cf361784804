"""The differentiable arguments of a function as one flat vector."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from fomoh_jax._types import PyTreeDef, in_dtype


@dataclasses.dataclass(frozen=True)
class Varied:
    """The elements that vary, in the order of ``jax.flatten_util.ravel_pytree``.

    Attributes:
      args: tuple of the arguments, with ``None`` for what is held fixed.
      structure: the tree of what is returned for them: that of the only argument, or of
        the tuple of several.
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

    @property
    def dtype(self) -> np.dtype:
        """The promoted dtype of the leaves, at least float32."""
        with jax.numpy_dtype_promotion("standard"):
            return jnp.result_type(jnp.float32, *map(jnp.result_type, self.leaves))

    def vector(self, tree: PyTree[ArrayLike]) -> Float[Array, " {self.size}"]:
        """``[D]`` of a tree of ``[*a]``, with ``None`` for what is fixed."""
        return jnp.concatenate(
            [jnp.ravel(x).astype(self.dtype) for x in jax.tree.leaves(tree)]
        )

    def directions(self, vectors: Shaped[Array, "*lead {self.size}"]) -> list[Array]:
        """``[*lead, D]`` to ``[*lead, *a]`` for each leaf, in its dtype."""
        return [
            in_dtype(
                piece.reshape(*vectors.shape[:-1], *jnp.shape(a)), jnp.result_type(a)
            )
            for a, piece in zip(self.leaves, self._split(vectors, -1))
        ]

    def tree(self, vectors: Shaped[Array, "*lead {self.size}"]) -> PyTree[Array]:
        """``[*lead, D]`` to a tree like the arguments of ``[*lead, *a]``."""
        return jax.tree.structure(self.args).unflatten(self.directions(vectors))

    def moved(
        self, primals: Sequence[PyTree], vector: Float[Array, " {self.size}"]
    ) -> tuple[PyTree, ...]:
        """The primals with the elements of a vector ``[D]`` for those that vary."""
        is_leaf = lambda x: x is None
        keep = lambda new, old: old if new is None else new
        return jax.tree.map(keep, self.tree(vector), tuple(primals), is_leaf=is_leaf)

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
