"""The largest curvatures, by subspace iteration."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from fomoh_jax._hyperdual.arguments import check_key, check_size
from fomoh_jax._hyperdual.loops import while_loop
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax.curvature._checks import read_tolerance
from fomoh_jax.curvature._coordinates import all_varied
from fomoh_jax.curvature._products import block_product
from fomoh_jax.curvature._scaling import magnitude


class Eigenpairs(NamedTuple):
    """Approximate eigenvalues of a Hessian, of the largest magnitude first.

    Attributes:
      values: ``λ``, ``[k]``.
      vectors: orthonormal ``u``, a tuple like the arguments of the function whose
        leaves have a leading axis ``k``.
      residuals: ``|H u - λ u|``, ``[k]``: the Hessian has an eigenvalue within this
        distance of each of ``values``.
      iterations: their number, an integer.
    """

    values: Float[Array, " k"]
    vectors: PyTree[Float[Array, "k ..."]]
    residuals: Float[Array, " k"]
    iterations: Int[Array, ""]


def top_eigenvalues(
    fun: Callable,
    primals: Sequence[PyTree],
    key: PRNGKeyArray,
    k: int,
    *,
    maxiter: int = 100,
    tol: ArrayLike = 1e-4,
    oversampling: int = 5,
    plan: Plan | Literal["auto"] = "auto",
) -> Eigenpairs:
    r"""Eigenvalues of the Hessian of the largest magnitude, by subspace iteration.

    Subspace iteration with Rayleigh–Ritz: an orthonormal block :math:`X` of
    ``k + oversampling`` vectors is multiplied by the Hessian, and

    .. math:: X^\top H X = U \Theta U^\top, \qquad X \leftarrow \mathrm{orth}(H X U)

    until ``k`` pairs of :math:`\Theta` and :math:`X U` have converged. An error
    shrinks by :math:`|\lambda_{m + 1} / \lambda_i|` an iteration, with the first
    eigenvalue that the block of :math:`m` has no room for, so that one or two vectors
    more may save many.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      key: PRNG key of the first block.
      k: number of eigenvalues, at most ``D``, the number of elements that vary.
      maxiter: the largest number of iterations, each one product of the block.
      tol: the iteration ends when every residual is at most ``tol`` times the largest
        absolute eigenvalue; at least 0. The error of an eigenvalue is proportional to
        the square of its residual.
      oversampling: how many vectors the block has beyond ``k``; at least 0. The block
        never has more than ``D`` vectors.
      plan: how products are computed, as in :func:`hvp`.

    Returns:
      :class:`Eigenpairs`.

    Raises:
      TypeError: if ``fun`` does not return one real number, if ``primals`` holds
        complex numbers, if a size is no Python integer, if ``key`` is no PRNG key, if
        ``tol`` is no real number, or if ``plan`` is neither ``"auto"`` nor a plan.
      ValueError: if a size is out of range, ``tol`` is negative or NaN, nothing varies,
        or the plan cannot take the function.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import top_eigenvalues
      >>> f, x = lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.array([1.0, 1.0])
      >>> pairs = top_eigenvalues(f, (x,), jax.random.key(0), 1)
      >>> print(jnp.round(pairs.values, 4))
      [-6.]

    References:
      Saad, *Numerical Methods for Large Eigenvalue Problems*, 2011, chapter 5.
    """
    name, way = "top_eigenvalues", chosen(plan)
    varied = all_varied(name, fun, primals)
    k = check_size("k", k)
    if k > varied.size:
        raise ValueError(
            f"k must be at most the number of elements that vary, "
            f"{varied.size}; got {k}."
        )
    limit = check_size("maxiter", maxiter)
    width = check_size("k + oversampling", k + oversampling)
    if width < k:
        raise ValueError(f"oversampling must be at least 0; got {oversampling}.")
    width = min(width, varied.size)
    check_key(key)
    relative = read_tolerance(tol, varied.dtype)

    def unconverged(state):
        _, pairs = state
        close = pairs.residuals <= relative * jnp.max(jnp.abs(pairs.values))
        known = jnp.all(close) & (pairs.iterations > 0)
        return (pairs.iterations < limit) & ~known

    def iterate(state):
        block, pairs = state
        product = block_product(name, fun, primals, varied, block, way)
        # Squares of what is tiny or huge leave the range of the numbers.
        scale = magnitude(product)
        product = product / scale
        values, vectors, product = _rayleigh_ritz(block, product)
        residuals = jnp.linalg.norm(product - values[:, None] * vectors, axis=1)
        pairs = Eigenpairs(
            scale * values[:k],
            vectors[:k],
            scale * residuals[:k],
            pairs.iterations + 1,
        )
        return _orthonormal(product), pairs

    shape, dtype = (width, varied.size), varied.dtype
    block = _orthonormal(jax.random.normal(key, shape, dtype))
    unknown = jnp.zeros(k, dtype)
    start = Eigenpairs(unknown, block[:k], unknown, jnp.array(0))
    _, pairs = while_loop(unconverged, iterate, (block, start))
    return pairs._replace(vectors=varied.tree(pairs.vectors))


def _orthonormal(rows: Float[Array, "m D"]) -> Float[Array, "m D"]:
    """Orthonormal vectors of the same span."""
    return jnp.linalg.qr(rows.T)[0].T


def _rayleigh_ritz(
    block: Float[Array, "m D"], product: Float[Array, "m D"]
) -> tuple[Float[Array, " m"], Float[Array, "m D"], Float[Array, "m D"]]:
    """Eigenvalues of a matrix projected onto a block, of the largest magnitude first.

    Args:
      block: ``X``, orthonormal.
      product: the matrix times each vector of the block.

    Returns:
      The eigenvalues ``Θ``, the vectors ``X U``, and the matrix times each of these.
    """
    projected = block @ product.T
    values, rotation = jnp.linalg.eigh((projected + projected.T) / 2)
    order = jnp.argsort(-jnp.abs(values))
    values, rotation = values[order], rotation[:, order].T
    return values, rotation @ block, rotation @ product
