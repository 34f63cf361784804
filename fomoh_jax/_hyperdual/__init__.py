"""Hyper-dual numbers, their interpreter, and the models computed with them."""

from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.deferred import Deferred
from fomoh_jax._hyperdual.extension import register_rule
from fomoh_jax._hyperdual.low_rank import LowRank
from fomoh_jax._hyperdual.models import (
    DirectionalCurvature,
    QuadraticModel,
    directional_curvature,
    directional_derivatives,
    gauss_newton_model,
    hyper_jvp,
    quadratic_model,
)

__all__ = [
    "Deferred",
    "DirectionalCurvature",
    "LowRank",
    "QuadraticModel",
    "Stack",
    "directional_curvature",
    "directional_derivatives",
    "gauss_newton_model",
    "hyper_jvp",
    "quadratic_model",
    "register_rule",
]
