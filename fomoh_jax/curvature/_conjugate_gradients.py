"""Linear systems with the Hessian, by conjugate gradients."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax._hyperdual.loops import while_loop
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax.curvature._checks import read_tolerance
from fomoh_jax.curvature._coordinates import along
from fomoh_jax.curvature._products import block_product
from fomoh_jax.curvature._scaling import norm


class ConjugateGradients(NamedTuple):
    """The result of conjugate gradients, and what stopped them.

    Attributes:
      solution: tuple like the arguments of the function.
      residual_norm: ``|b - H x|``, updated by the recurrence and not recomputed; a
        scalar.
      iterations: their number, an integer.
      negative_curvature: whether a direction of negative curvature was met.
      direction: unit direction of negative curvature, a tuple like the arguments; zero
        if none was met.
    """

    solution: PyTree[Array]
    residual_norm: Float[Array, ""]
    iterations: Int[Array, ""]
    negative_curvature: Bool[Array, ""]
    direction: PyTree[Array]


class _State(NamedTuple):
    """The state of the loop, whose right-hand side is scaled to ``max |b_i| = 1``.

    ``largest`` is the largest norm of a product with a direction of length 1.
    """

    solution: Float[Array, " D"]
    residual: Float[Array, " D"]
    search: Float[Array, " D"]
    largest: Float[Array, ""]
    negative: Bool[Array, ""]
    positive: Bool[Array, ""]
    iterations: Int[Array, ""]


def conjugate_gradients(
    fun: Callable,
    primals: Sequence[PyTree],
    rhs: Sequence[PyTree],
    *,
    tol: ArrayLike = 1e-5,
    maxiter: int | None = None,
    plan: Plan | Literal["auto"] = "auto",
) -> ConjugateGradients:
    r"""Solves :math:`H x = b` by conjugate gradients, without forming the Hessian.

    From :math:`x = 0`, conjugate gradients end when :math:`|b - H x|` is at most
    ``tol`` times :math:`|b|`, or at a search direction :math:`p` whose curvature
    :math:`p^\top H p` is not positive to rounding. With :math:`b = -\nabla f` this is
    Newton's step, and each iterate on the way goes downhill. Where the curvature is
    negative, ``solution`` is what was reached before, zero in the first iteration, and
    ``direction`` says where the model has no minimum.

    Each iteration is one product, as :func:`hvp` computes it. With ``plans.forward()``
    a product carries ``D`` second-order coefficients, where ``D`` is the number of
    elements that vary, and the whole Hessian ``D (D + 1) / 2``, so this is cheaper if
    few iterations are needed, or if a matrix of ``D²`` numbers does not fit.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      rhs: ``b``, a tuple like ``primals``; ``None`` for an argument, or a part of one,
        that is held fixed.
      tol: tolerance of the residual, relative to the right-hand side; at least 0.
      maxiter: the largest number of iterations; by default ``D``, after which the
        solution is exact but for rounding.
      plan: how products are computed, as in :func:`hvp`.

    Returns:
      A :class:`ConjugateGradients`; its solution is always finite.

    Raises:
      TypeError: if ``fun`` does not return one real number, if a structure or a dtype
        does not match the primals, if a size is no Python integer, if ``tol`` is no
        real number, or if ``plan`` is neither ``"auto"`` nor a plan.
      ValueError: if a shape does not match, a size is less than 1, ``tol`` is negative
        or NaN, nothing varies, or the plan cannot take the function.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax.curvature import conjugate_gradients
      >>> f, x = lambda x: x[0] ** 2 - x[1] ** 2, jnp.array([1.0, 1.0])
      >>> result = conjugate_gradients(f, (x,), (jnp.array([4.0, 0.0]),))
      >>> print(result.solution[0], result.negative_curvature)
      [2. 0.] False
      >>> result = conjugate_gradients(f, (x,), (jnp.array([0.0, 4.0]),))
      >>> print(result.direction[0], result.negative_curvature)
      [0. 1.] True

    References:
      Steihaug, *The conjugate gradient method and trust regions in large scale
      optimization*, 1983.
    """
    name, way = "conjugate_gradients", chosen(plan)
    varied, b = along("rhs", name, fun, primals, rhs)
    limit = varied.size
    if maxiter is not None:
        limit = check_size("maxiter", maxiter)
    relative = read_tolerance(tol, b.dtype)
    # Squares of what is tiny or huge leave the range of the numbers.
    largest = jnp.max(jnp.abs(b))
    scale = jnp.where(largest > 0, largest, 1)

    def product(vector: Float[Array, " D"]) -> Float[Array, " D"]:
        (own,) = block_product(name, fun, primals, varied, vector[None], way)
        return own

    end = _iterated(product, b / scale, relative, limit)
    solution = scale * end.solution
    solution = jnp.where(jnp.all(jnp.isfinite(solution)), solution, 0)
    length = jnp.linalg.norm(end.search)
    direction = end.search / jnp.where(length > 0, length, 1)
    return ConjugateGradients(
        varied.tree(solution),
        scale * jnp.linalg.norm(end.residual),
        end.iterations,
        end.negative,
        varied.tree(jnp.where(end.negative, direction, 0)),
    )


def _iterated(
    product: Callable[[Float[Array, " D"]], Float[Array, " D"]],
    b: Float[Array, " D"],
    tol: Float[Array, ""],
    maxiter: int,
) -> _State:
    """The state after the last iteration, from a scaled right-hand side."""
    target = tol * jnp.linalg.norm(b)

    def unfinished(state: _State) -> Bool[Array, ""]:
        small = jnp.linalg.norm(state.residual) <= target
        return state.positive & ~small & (state.iterations < maxiter)

    def iterate(state: _State) -> _State:
        return _after_one_more(product, state)

    no, yes = jnp.zeros_like(b, bool, shape=()), jnp.ones_like(b, bool, shape=())
    none, count = jnp.zeros_like(b, shape=()), jnp.zeros_like(b, int, shape=())
    start = _State(jnp.zeros_like(b), b, b, none, no, yes, count)
    return while_loop(unfinished, iterate, start)


def _after_one_more(
    product: Callable[[Float[Array, " D"]], Float[Array, " D"]], state: _State
) -> _State:
    """One iteration; where the curvature is not positive, nothing moves."""
    x, r = state.solution, state.residual
    unit = state.search / jnp.linalg.norm(state.search)
    along_unit = product(unit)
    curvature = unit @ along_unit
    largest = jnp.maximum(state.largest, norm(along_unit, 0))
    # Rounding gives a direction of no curvature some, of either sign. That grows with
    # the Hessian, and in a sum of D terms hardly with D.
    hidden = 10 * jnp.finfo(r.dtype).eps * largest
    rate = (unit @ r) / jnp.where(curvature > hidden, curvature, 1)
    further = x + rate * unit
    positive = (curvature > hidden) & jnp.all(jnp.isfinite(further))
    rest = r - rate * along_unit
    search = rest + (rest @ rest) / (r @ r) * state.search
    keep = lambda new, old: jnp.where(positive, new, old)
    return _State(
        keep(further, x),
        keep(rest, r),
        keep(search, state.search),
        largest,
        curvature < -hidden,
        positive,
        state.iterations + 1,
    )
