"""Hyper-dual numbers, their interpreter, and the transformations built on them."""

from fomoh_jax.hyperdual.transforms import (
    QuadraticModel,
    directional_curvature,
    directional_derivatives,
    hessian,
    hyper_jvp,
    quadratic_model,
)

__all__ = [
    "QuadraticModel",
    "directional_curvature",
    "directional_derivatives",
    "hessian",
    "hyper_jvp",
    "quadratic_model",
]
