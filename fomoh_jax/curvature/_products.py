"""Products with the Hessian."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fomoh_jax._hyperdual import directional_derivatives
from fomoh_jax._hyperdual.arguments import read_directions
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate, primals_of
from fomoh_jax._hyperdual.part_forms import Block
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperdual.plans.forward import applied_to_basis
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._varied import Varied
from fomoh_jax.curvature._coordinates import along, check_scalar


def hvp(
    fun: Callable,
    primals: Sequence[PyTree],
    vector: Sequence[PyTree],
    *,
    plan: Plan | Literal["auto"] = "auto",
) -> tuple[PyTree, ...]:
    r"""The product of the Hessian with a vector.

    .. math:: (H v)_i = e_i^\top H v

    The product is exact. With ``plans.adjoint()`` it takes a few evaluations of the
    function, if reverse mode can take that; with ``plans.forward()``, one forward pass
    that carries ``D`` second-order coefficients and not ``D²``, where ``D`` is the
    number of elements that vary: the pairs of ``v`` with each direction of the standard
    basis.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      vector: tuple like ``primals``; ``None`` for an argument, or a part of one, that
        is held fixed.
      plan: how it is computed, one of :mod:`fomoh_jax.plans`. ``"auto"`` takes
        ``plans.adjoint()`` if at least five elements vary and reverse mode can take the
        function, and ``plans.forward()`` otherwise. It also takes ``plans.forward()``
        if the function may select or slice values whose derivatives are infinite, as
        ``jnp.where(x > 0, jnp.sqrt(x), 0)`` does, since a reverse pass returns NaN
        there.

    Returns:
      A tuple like ``primals``, with ``None`` for what is held fixed.

    Raises:
      TypeError: if ``fun`` does not return one real number, if a structure or a dtype
        does not match the primals, or if ``plan`` is neither ``"auto"`` nor a plan.
      ValueError: if a shape does not match, nothing varies, or the plan cannot take the
        function.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax.curvature import hvp
      >>> f, x = lambda x: x[0] ** 2 * x[1], jnp.array([3.0, 2.0])
      >>> (product,) = hvp(f, (x,), (jnp.array([1.0, 1.0]),))
      >>> print(product)
      [10.  6.]
    """
    varied, v = along("vector", "hvp", fun, primals, vector)
    products = block_product("hvp", fun, primals, varied, v[None], chosen(plan))
    return varied.tree(products[0])


def block_product(
    name: str,
    fun: Callable,
    primals: Sequence[PyTree],
    varied: Varied,
    vectors: Float[Array, "m D"],
    plan: Plan,
) -> Float[Array, "m D"]:
    """``[m, D]``, the Hessian times each of the vectors ``[m, D]``."""
    m = len(vectors)

    def columns(primals, basis):
        form = Block(m, len(basis))
        directions = varied.tree(jnp.concatenate([vectors, basis]))
        _, channels = read_directions(primals, directions)
        out, _ = evaluate(fun, form, primals, channels)
        check_scalar(name, primals_of(out))
        seconds = coefficients_of(out, "seconds", form.q)
        return seconds.reshape(m, len(basis)).astype(varied.dtype)

    def slopes(point):
        moved = varied.moved(primals, point)
        value, slope = directional_derivatives(fun, moved, varied.tree(vectors))
        check_scalar(name, value)
        return slope.astype(varied.dtype)

    point = varied.vector(varied.args)
    return plan.products(columns, slopes, tuple(primals), point)


def gradient(
    name: str,
    fun: Callable,
    primals: Sequence[PyTree],
    varied: Varied,
    chunk_size: int | None = None,
) -> Float[Array, " D"]:
    """``[D]``, the slopes along the standard basis."""

    def slopes(primals, basis):
        directions = varied.tree(basis)
        value, slope = directional_derivatives(fun, primals, directions)
        check_scalar(name, value)
        return slope.astype(varied.dtype)

    point = varied.vector(varied.args)
    return applied_to_basis(slopes, tuple(primals), point, chunk_size)
