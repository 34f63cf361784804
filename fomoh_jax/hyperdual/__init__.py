"""Hyper-dual numbers, their interpreter, and the transformations built on them.

Beside the transformations, which ``fomoh_jax`` offers by their names, this is what a
rule for a primitive (:func:`fomoh_jax.register_rule`) is written with.
"""

from fomoh_jax.hyperdual import plans
from fomoh_jax.hyperdual.channels import (
    ZERO,
    Channel,
    Deferred,
    Stack,
    apply_linear,
)
from fomoh_jax.hyperdual.extension import register_rule
from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.number import HyperDual
from fomoh_jax.hyperdual.operators import hessian, hessian_diagonal, laplacian
from fomoh_jax.hyperdual.registry import Operation
from fomoh_jax.hyperdual.rules.bilinear import bilinear
from fomoh_jax.hyperdual.rules.constant import constant
from fomoh_jax.hyperdual.rules.elementwise import elementwise
from fomoh_jax.hyperdual.rules.generic import generic
from fomoh_jax.hyperdual.rules.linear import linear
from fomoh_jax.hyperdual.transforms import (
    QuadraticModel,
    directional_curvature,
    directional_derivatives,
    gauss_newton_model,
    hyper_jvp,
    quadratic_model,
)

__all__ = [
    "ZERO",
    "Channel",
    "Deferred",
    "Form",
    "HyperDual",
    "Operation",
    "QuadraticModel",
    "Stack",
    "apply_linear",
    "bilinear",
    "constant",
    "directional_curvature",
    "directional_derivatives",
    "elementwise",
    "gauss_newton_model",
    "generic",
    "hessian",
    "hessian_diagonal",
    "hyper_jvp",
    "laplacian",
    "linear",
    "plans",
    "quadratic_model",
    "register_rule",
]
