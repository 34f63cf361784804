"""Products with the Hessian, by forward passes alone."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fomoh_jax._hyperdual import directional_derivatives
from fomoh_jax._hyperdual.arguments import check_size, read_directions
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate, primals_of
from fomoh_jax._hyperdual.forms import Block
from fomoh_jax._hyperdual.loops import map_slices
from fomoh_jax.curvature._coordinates import Coordinates, along, check_scalar


def hvp(
    fun: Callable,
    primals: Sequence[Any],
    vector: Any,
    *,
    chunk_size: int | None = None,
) -> Any:
    r"""The product of the Hessian with a vector, in one forward pass.

    .. math:: (H v)_i = e_i^\top H v

    exact, for ``D`` second-order coefficients and not ``D²``: the pairs of ``v`` with
    each direction of the standard basis. Where reverse mode can take the function,
    ``jax.jvp`` of ``jax.grad`` takes a few evaluations instead of ``D``.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      vector: tuple like ``primals``; ``None`` for an argument, or a part of one, that
        is held fixed.
      chunk_size: bound on memory: that many elements of the product at a time. By
        default all.

    Returns:
      A tuple like ``primals``, with ``None`` for what is held fixed.

    Raises:
      TypeError: if ``fun`` does not return one real number, if a structure or a dtype
        does not match the primals, or if ``chunk_size`` is no Python integer.
      ValueError: if a shape does not match, ``chunk_size < 1``, or nothing varies.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax.curvature import hvp
      >>> f, x = lambda x: x[0] ** 2 * x[1], jnp.array([3.0, 2.0])
      >>> (product,) = hvp(f, (x,), (jnp.array([1.0, 1.0]),))
      >>> print(product)
      [10.  6.]
    """
    coordinates, v = along("vector", "hvp", fun, primals, vector)
    products = block_product("hvp", fun, primals, coordinates, v[None], chunk_size)
    return coordinates.tree(products[0])


def block_product(
    name: str,
    fun: Callable,
    primals: Sequence[Any],
    coordinates: Coordinates,
    vectors: jax.Array,
    chunk_size: int | None = None,
) -> jax.Array:
    """``[m, D]``, the Hessian times each of the vectors ``[m, D]``, in one pass."""
    m = len(vectors)

    def columns(primals, basis):
        form = Block(m, len(basis))
        directions = coordinates.tree(jnp.concatenate([vectors, basis]))
        _, channels = read_directions(primals, directions)
        out, _ = evaluate(fun, form, primals, channels)
        check_scalar(name, primals_of(out))
        seconds = coefficients_of(out, "seconds", form.q)
        return seconds.reshape(m, len(basis)).astype(coordinates.dtype)

    return _along_basis(columns, primals, coordinates, chunk_size)


def gradient(
    name: str,
    fun: Callable,
    primals: Sequence[Any],
    coordinates: Coordinates,
    chunk_size: int | None = None,
) -> jax.Array:
    """``[D]``, the slopes along the standard basis."""

    def slopes(primals, basis):
        directions = coordinates.tree(basis)
        value, slope = directional_derivatives(fun, primals, directions)
        check_scalar(name, value)
        return slope.astype(coordinates.dtype)

    return _along_basis(slopes, primals, coordinates, chunk_size)


def _along_basis(
    function: Callable,
    primals: Sequence[Any],
    coordinates: Coordinates,
    chunk_size: int | None,
) -> jax.Array:
    """``function(primals, basis)``, ``[…, D]``, for a part of the basis at a time."""
    size, dtype = coordinates.size, coordinates.dtype
    if chunk_size is None or check_size("chunk_size", chunk_size) >= size:
        return function(primals, jnp.eye(size, dtype=dtype))
    count = -(-size // chunk_size)
    width = -(-size // count)

    def chunk(start):
        # As in quadratic_model, each chunk finds what depends on the primals anew:
        # kept for the next, it would be that of every layer.
        again, start = lax.optimization_barrier((tuple(primals), start))
        # Past the end the directions are zero.
        basis = jax.nn.one_hot(start + jnp.arange(width), size, dtype=dtype)
        return function(again, basis)

    parts = jnp.moveaxis(map_slices(chunk, jnp.arange(count) * width), 0, -2)
    return parts.reshape(*parts.shape[:-2], count * width)[..., :size]
