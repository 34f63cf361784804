"""Newton's step from an estimate of the Hessian."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fomoh_jax._gram_metric import rounding
from fomoh_jax.curvature._coordinates import all_varied, read_like_hessian
from fomoh_jax.curvature._estimates import Estimate
from fomoh_jax.curvature._products import gradient
from fomoh_jax.curvature._scaling import norm


def newton_step(
    fun: Callable,
    primals: Sequence[PyTree],
    hessian: Estimate,
    *,
    chunk_size: int | None = None,
) -> tuple[PyTree, ...]:
    r"""Newton's step with an estimated Hessian, no longer than the estimate warrants.

    .. math::
      p = - U \max(|\Lambda|, \nu)^{-1} U^\top \nabla f, \qquad
      U \Lambda U^\top = \hat H, \quad
      \nu = 2 \max_i \Big(\sum_j \sigma_{ij}^2\Big)^{1/2}

    Along negative curvature it goes downhill, and curvature below the noise of the
    estimate, of standard errors :math:`\sigma`, counts as that noise: :math:`\nu` is
    the norm of a random symmetric matrix of such elements. Along an eigenvector where
    both are zero the step is zero. If anything is not finite the whole step is zero.
    The gradient is exact, from one slope for each of the ``D`` elements that vary, in
    one forward pass.

    Args:
      fun: a function of pytrees of arrays that returns one real number.
      primals: tuple of its arguments.
      hessian: an estimate by :func:`sampled_hessian`, or ``Estimate(H, 0 * H)`` for a
        Hessian that is known, with regard to all the arguments that vary (``argnums=0``
        for one, ``(0, 1)`` for two): a tree of trees of ``[*a, *b]``.
      chunk_size: bound on memory: that many slopes at a time. By default all.

    Returns:
      A tuple like ``primals`` to add to it, with ``None`` for what is not of real
      floating-point numbers.

    Raises:
      TypeError: if ``fun`` does not return one real number, if ``primals`` holds
        complex numbers, if ``hessian`` is no :class:`Estimate` of real numbers, or not
        of the arguments that vary, or if ``chunk_size`` is no Python integer.
      ValueError: if ``chunk_size < 1``, nothing varies, or a shape in ``hessian`` does
        not match.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax.curvature import Estimate, newton_step
      >>> f, x = lambda x: jnp.sum((x - 1) ** 2), jnp.array([3.0, 2.0])
      >>> hessian = 2 * jnp.eye(2)
      >>> (step,) = newton_step(f, (x,), Estimate(hessian, 0 * hessian))
      >>> print(x + step)
      [1. 1.]

    References:
      Dauphin et al., *Identifying and attacking the saddle point problem in
      high-dimensional non-convex optimization*, 2014, arXiv:1406.2572.
    """
    varied = all_varied("newton_step", fun, primals)
    if not isinstance(hessian, (tuple, list)) or len(hessian) != 2:
        got = "an array" if isinstance(hessian, jax.Array) else type(hessian).__name__
        raise TypeError(
            "hessian must be an Estimate, what the function that sampled_hessian "
            f"returns does; got {got}. For a Hessian H that is known write "
            "Estimate(H, jax.tree.map(jnp.zeros_like, H))."
        )
    value, error = (
        read_like_hessian(f"hessian.{part}", x, varied)
        for part, x in zip(Estimate._fields, hessian)
    )
    slope = gradient("newton_step", fun, primals, varied, chunk_size)
    finite = jnp.array(True)
    for array in (value, error, slope):
        finite &= jnp.all(jnp.isfinite(array))
    # The eigenvalues of what is not finite may not be found at all.
    matrix = jnp.where(finite, (value + value.T) / 2, 0)
    eigenvalues, axes = jnp.linalg.eigh(matrix)
    noise = 2 * jnp.max(norm(error, 1))
    size = jnp.maximum(jnp.abs(eigenvalues), noise)
    flat = size <= rounding(size)
    along = jnp.where(flat, 0, (axes.T @ slope) / jnp.where(flat, 1, size))
    step = -axes @ along
    finite &= jnp.all(jnp.isfinite(step))
    return varied.tree(jnp.where(finite, step, 0))
