"""The parts of a rule for a primitive (:func:`fomoh_jax.register_rule`).

A rule is given a :class:`Form`, an :class:`Operation` and the operands, each a
:class:`HyperDual` of two :class:`Channel` objects, and returns a number for each
result. For primitives of a known shape, the rules of the families do:
:func:`elementwise`, :func:`linear`, :func:`bilinear`, :func:`constant`,
:func:`generic`.
"""

from fomoh_jax._hyperdual.channels import ZERO, Channel, apply_linear
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.registry import Operation
from fomoh_jax._hyperdual.rules.bilinear import bilinear
from fomoh_jax._hyperdual.rules.constant import constant
from fomoh_jax._hyperdual.rules.elementwise import elementwise
from fomoh_jax._hyperdual.rules.generic import generic
from fomoh_jax._hyperdual.rules.linear import linear

__all__ = [
    "ZERO",
    "Bilinear",
    "Channel",
    "Form",
    "HyperDual",
    "Operation",
    "apply_linear",
    "bilinear",
    "constant",
    "elementwise",
    "generic",
    "linear",
]
