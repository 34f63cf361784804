"""The differentiable arguments of a function as one flat vector."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from fomoh_jax._argnums import Varied
from fomoh_jax._hyperdual.arguments import check_primals, read_vector
from fomoh_jax._refusals import check_real_scalar
from fomoh_jax._types import PyTreeDef
from fomoh_jax.curvature._checks import read_real


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The elements that vary, in the order of ``jax.flatten_util.ravel_pytree``.

    Attributes:
      leaves: of the arguments, with ``None`` for those that are held fixed.
      structure: the tree of the arguments.
    """

    leaves: tuple[ArrayLike | None, ...]
    structure: PyTreeDef

    @property
    def size(self) -> int:
        """``D``, the number of elements."""
        return sum(jnp.size(x) for x in self.leaves if x is not None)

    @property
    def dtype(self) -> np.dtype:
        """The promoted dtype of the leaves, at least float32."""
        varied = [jnp.result_type(x) for x in self.leaves if x is not None]
        with jax.numpy_dtype_promotion("standard"):
            return jnp.result_type(jnp.float32, *varied)

    def tree(self, vectors: Float[Array, "*lead {self.size}"]) -> PyTree[Array]:
        """``[*lead, D]`` as a tree of ``[*lead, *a]``, ``None`` for what is fixed."""
        sizes = [0 if x is None else jnp.size(x) for x in self.leaves]
        pieces = jnp.split(vectors, np.cumsum(sizes)[:-1], axis=-1)
        return self.structure.unflatten(
            None
            if x is None
            else piece.reshape(*vectors.shape[:-1], *jnp.shape(x)).astype(
                jnp.result_type(x)
            )
            for x, piece in zip(self.leaves, pieces)
        )

    def moved(
        self, primals: Sequence[PyTree], vector: Float[Array, " {self.size}"]
    ) -> tuple[PyTree, ...]:
        """The primals with the elements of a vector ``[D]`` for those that vary."""
        is_leaf = lambda x: x is None
        keep = lambda new, old: old if new is None else new
        return jax.tree.map(keep, self.tree(vector), tuple(primals), is_leaf=is_leaf)

    def vector(self, tree: PyTree[ArrayLike]) -> Float[Array, " {self.size}"]:
        """``[D]`` of a tree of ``[*a]``, with ``None`` for what is fixed."""
        return jnp.concatenate(
            [jnp.ravel(x).astype(self.dtype) for x in jax.tree.leaves(tree)]
        )

    def read_vector(self, name: str, tree: PyTree) -> Float[Array, " {self.size}"]:
        """``[D]`` of a tree of ``[*a]`` that a caller handed in.

        Raises:
          TypeError: if there is not an array of real numbers for each leaf that varies.
          ValueError: if a shape does not match.
        """
        return jnp.concatenate(self._read(name, tree, 1))

    def read_matrix(
        self, name: str, tree: PyTree
    ) -> Float[Array, "{self.size} {self.size}"]:
        """``[D, D]`` of a tree of trees of ``[*a, *b]`` that a caller handed in.

        Raises:
          TypeError: if there is not an array of real numbers for each two leaves that
            vary.
          ValueError: if a shape does not match.
        """
        blocks, n = self._read(name, tree, 2), len(self._shapes)
        rows = (jnp.concatenate(blocks[i : i + n], 1) for i in range(0, n * n, n))
        return jnp.concatenate(list(rows), 0)

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [jnp.shape(x) for x in self.leaves if x is not None]

    def _read(self, name: str, tree: PyTree, order: int) -> list[Array]:
        """An array ``[size of a, …]`` for each ``order`` leaves that vary."""
        pairs = jax.tree_util.tree_leaves_with_path(tree)
        expected = list(itertools.product(self._shapes, repeat=order))
        if len(pairs) != len(expected):
            of = "arguments" if order == 1 else "Hessian that fomoh_jax.hessian returns"
            raise TypeError(
                f"{name} must be like the {of} for what varies, a tree of "
                f"{len(expected)} arrays; got {jax.tree.structure(tree)}."
            )
        arrays = []
        for (path, leaf), shapes in zip(pairs, expected):
            where = name + jax.tree_util.keystr(path)
            array = read_real(where, leaf, self.dtype)
            if array.shape != sum(shapes, ()):
                raise ValueError(
                    f"{where} must have shape {list(sum(shapes, ()))}; got "
                    f"{list(array.shape)}."
                )
            arrays.append(array.reshape(list(map(math.prod, shapes))))
        return arrays


def all_varied(name: str, fun: Callable, primals: Sequence[PyTree]) -> Coordinates:
    """The real floating-point numbers among the arguments; integers are held fixed.

    Raises:
      TypeError: if ``primals`` is not what ``fun`` takes, or holds complex numbers.
      ValueError: if nothing varies.
    """
    check_primals(fun, primals)
    leaves, structure = jax.tree.flatten(tuple(primals))
    return _checked(name, primals, leaves, structure)


def coordinates_of(name: str, varied: Varied) -> Coordinates:
    """All the elements of the arguments that ``argnums`` names.

    Raises:
      ValueError: if there are none.
    """
    if not varied.size:
        raise ValueError(
            f"{name} needs an argument that varies; what argnums names has no elements."
        )
    return Coordinates(tuple(varied.leaves), jax.tree.structure(varied.args))


def along(
    argument: str,
    name: str,
    fun: Callable,
    primals: Sequence[PyTree],
    vector: Sequence[PyTree],
) -> tuple[Coordinates, Float[Array, " D"]]:
    """The coordinates along which a vector moves, and its elements.

    ``None`` in the vector holds an argument, or a part of one, fixed.

    Raises:
      TypeError: as :func:`all_varied`, or if the vector is not like the primals.
      ValueError: if a shape does not match, or nothing varies.
    """
    check_primals(fun, primals)
    vectors = read_vector(argument, primals, vector)
    leaves, structure = jax.tree.flatten(tuple(primals))
    varied = [None if v is None else x for x, v in zip(leaves, vectors)]
    coordinates = _checked(name, primals, varied, structure)
    arrays = [v for v in vectors if v is not None]
    return coordinates, coordinates.vector(arrays)


def check_scalar(name: str, value: PyTree) -> None:
    """Refuse a function that returns anything but one real number."""
    check_real_scalar(f"{name} needs a function that returns", value)


def _checked(
    name: str,
    primals: Sequence[PyTree],
    leaves: Sequence[ArrayLike | None],
    structure: PyTreeDef,
) -> Coordinates:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tuple(primals))]
    varied = []
    for path, leaf in zip(paths, leaves):
        dtype = None if leaf is None else jnp.result_type(leaf)
        if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} needs real arguments; primals{jax.tree_util.keystr(path)} has "
                f"dtype {dtype}. Write fun in its real and imaginary parts."
            )
        real = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        varied.append(leaf if real else None)
    coordinates = Coordinates(tuple(varied), structure)
    if not coordinates.size:
        raise ValueError(
            f"{name} needs an argument that varies: primals holds no real "
            "floating-point number that is not held fixed."
        )
    return coordinates
