"""The parts of a rule for a primitive (:func:`fomoh_jax.register_rule`).

A rule is a function of a :class:`Form`, an :class:`Operation` and its operands. It
returns one :class:`HyperDual` for each result. An operand is a :class:`HyperDual` too:
a primal and two :class:`Channel` objects, its tangents and its second-order
coefficients. ``ZERO`` is the channel of what does not vary. A primitive that is
elementwise, linear, bilinear or constant needs no rule of its own: register
:func:`elementwise`, :func:`linear`, :func:`bilinear` or :func:`constant`.
:func:`generic` is for all others.
"""

from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.linear_operations import apply_linear
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
