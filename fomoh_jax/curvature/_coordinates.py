"""The arguments of a function that vary, and vectors and matrices like them."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from fomoh_jax._hyperdual.arguments import check_primals, read_vector
from fomoh_jax._refusals import check_real_scalar
from fomoh_jax._types import PyTreeDef
from fomoh_jax._varied import Varied
from fomoh_jax.curvature._checks import read_real


def all_varied(name: str, fun: Callable, primals: Sequence[PyTree]) -> Varied:
    """The real floating-point numbers among the arguments; integers are held fixed.

    Raises:
      TypeError: if ``primals`` is not what ``fun`` takes, or holds complex numbers.
      ValueError: if nothing varies.
    """
    check_primals(fun, primals)
    leaves, structure = jax.tree.flatten(tuple(primals))
    return _checked(name, primals, leaves, structure)


def check_not_empty(name: str, varied: Varied) -> None:
    """Refuse arguments without elements that ``argnums`` names.

    Raises:
      ValueError: if nothing varies.
    """
    if not varied.size:
        raise ValueError(
            f"{name} needs an argument that varies; what argnums names has no elements."
        )


def along(
    argument: str,
    name: str,
    fun: Callable,
    primals: Sequence[PyTree],
    vector: Sequence[PyTree],
) -> tuple[Varied, Float[Array, " D"]]:
    """The arguments that a vector moves, and its elements.

    ``None`` in the vector holds an argument, or a part of one, fixed.

    Raises:
      TypeError: as :func:`all_varied`, or if the vector is not like the primals.
      ValueError: if a shape does not match, or nothing varies.
    """
    check_primals(fun, primals)
    vectors = read_vector(argument, primals, vector)
    leaves, structure = jax.tree.flatten(tuple(primals))
    moved = [None if v is None else x for x, v in zip(leaves, vectors)]
    varied = _checked(name, primals, moved, structure)
    return varied, varied.vector(vectors)


def check_scalar(name: str, value: PyTree) -> None:
    """Refuse a function that returns anything but one real number."""
    check_real_scalar(f"{name} needs a function that returns", value)


def read_like_arguments(
    name: str, tree: PyTree, varied: Varied
) -> Float[Array, " {varied.size}"]:
    """``[D]`` of a tree of ``[*a]`` that a caller handed in.

    Raises:
      TypeError: if there is not an array of real numbers for each leaf that varies.
      ValueError: if a shape does not match.
    """
    return jnp.concatenate(_read(name, tree, varied, 1))


def read_like_hessian(
    name: str, tree: PyTree, varied: Varied
) -> Float[Array, "{varied.size} {varied.size}"]:
    """``[D, D]`` of a tree of trees of ``[*a, *b]`` that a caller handed in.

    Raises:
      TypeError: if there is not an array of real numbers for each two leaves that vary.
      ValueError: if a shape does not match.
    """
    blocks, n = _read(name, tree, varied, 2), len(varied.leaves)
    rows = (jnp.concatenate(blocks[i : i + n], 1) for i in range(0, n * n, n))
    return jnp.concatenate(list(rows), 0)


def _read(name: str, tree: PyTree, varied: Varied, order: int) -> list[Array]:
    """An array ``[size of a, …]`` for each ``order`` leaves that vary."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    expected = list(itertools.product(map(jnp.shape, varied.leaves), repeat=order))
    if len(pairs) != len(expected):
        of = "arguments" if order == 1 else "Hessian that fomoh_jax.hessian returns"
        raise TypeError(
            f"{name} must be like the {of} for what varies, a tree of "
            f"{len(expected)} arrays; got {jax.tree.structure(tree)}."
        )
    arrays = []
    for (path, leaf), shapes in zip(pairs, expected):
        where = name + jax.tree_util.keystr(path)
        array = read_real(where, leaf, varied.dtype)
        if array.shape != sum(shapes, ()):
            raise ValueError(
                f"{where} must have shape {list(sum(shapes, ()))}; got "
                f"{list(array.shape)}."
            )
        arrays.append(array.reshape(list(map(math.prod, shapes))))
    return arrays


def _checked(
    name: str,
    primals: Sequence[PyTree],
    leaves: Sequence[ArrayLike | None],
    structure: PyTreeDef,
) -> Varied:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tuple(primals))]
    real = []
    for path, leaf in zip(paths, leaves):
        dtype = None if leaf is None else jnp.result_type(leaf)
        if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} needs real arguments; primals{jax.tree_util.keystr(path)} has "
                f"dtype {dtype}. Write fun in its real and imaginary parts."
            )
        is_real = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        real.append(leaf if is_real else None)
    args = structure.unflatten(real)
    varied = Varied(args, jax.tree.structure(args))
    if not varied.size:
        raise ValueError(
            f"{name} needs an argument that varies: primals holds no real "
            "floating-point number that is not held fixed."
        )
    return varied
