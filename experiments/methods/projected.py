"""Forward gradients of several tangents."""

import optax

from experiments.methods.mean import of_mean
from fomoh_jax import directions, scale_by_forward_gradient


def multi_tangent(k: int) -> optax.GradientTransformationExtraArgs:
    r"""The gradient's projection on the span of ``k`` random tangents.

    .. math:: g = V (V^\top V)^{-1} V^\top \nabla f, \qquad V_{ij} \sim N(0, 1)

    which is :math:`W W^\top \nabla f` for an orthonormal basis :math:`W` of that span.

    References:
      Flügel et al., *Beyond Backpropagation: Optimization with Multi-Tangent Forward
      Gradients*, 2024, arXiv:2410.17764.
    """
    mean_along = scale_by_forward_gradient(directions.orthonormal(k))
    return of_mean(optax.chain(mean_along, optax.scale(k)))
