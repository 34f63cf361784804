"""The whole Hessian of one number: the tangents of its gradient along every coordinate.

This is no plan: it computes whole Hessians, and neither models nor products.
:class:`~fomoh_jax._hyperdual.plans.auto.Auto` takes it where reverse mode can. For all
``D`` coordinates together it is the fastest way that reverse mode allows, at about
``4 D`` evaluations; an adjoint pass would multiply ``D × D`` matrices of tangents at
each source, and a forward pass carry as many coefficients.

The gradient is this interpreter's own, so that a ``custom_jvp`` keeps its word, as in
the other plans, and what a program leaves out does not spoil the rest
(:mod:`fomoh_jax._hyperdual.left_out`). A second-order coefficient without
tangents obeys ``y_s = L x_s``, where ``L`` is the derivative of the program: the
gradient is its transpose.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.tree_util import register_static
from jaxtyping import Array, ArrayLike

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.left_out import leaves_out, times_unless_left_out
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._types import Leaf


@register_static
@dataclasses.dataclass(frozen=True)
class FirstDerivative(Form):
    """One second-order coefficient, ``y_s = L x_s``, and no tangents to add to it.

    Attributes:
      selects: whether the program may leave elements out.
    """

    selects: bool

    k = 0
    is_reversed = True

    @property
    def q(self) -> int:
        return 1

    def scale_seconds(self, coefficient: ArrayLike, channel: Channel) -> Channel:
        multiply = times_unless_left_out if self.selects else jnp.multiply
        return channel.scaled(coefficient, multiply)

    def _product(self, a, b) -> Channel:
        return ZERO

    def _bilinear(self, product, a, b, axis) -> Channel:
        return ZERO

    def _quadratic(self, function, xs, out_axes) -> list[Channel]:
        return [ZERO] * len(out_axes)


def hessian_by_gradient(
    jaxpr: ClosedJaxpr, args: Sequence[HyperDual]
) -> tuple[list[HyperDual], list[Leaf]]:
    """Returns ``Plan.hessians`` of a program whose first output is one number."""
    primals = tuple(arg.primal for arg in args)
    basis = [arg.tangents.moved(0).operand() for arg in args]

    def gradient(*xs: Leaf) -> tuple[list[Array], list[Leaf]]:
        return _gradient(jaxpr, xs)

    def along(*tangents: Array):
        return jax.jvp(gradient, primals, tangents, has_aux=True)

    # The directions last, as jax.jacfwd has them: the layout that XLA fuses.
    slopes, rows, outs = jax.vmap(along, out_axes=(None, -1, None))(*basis)
    out, *aux = outs
    flat = lambda leaves, shape: jnp.concatenate(
        [leaf.astype(out.dtype).reshape(-1, *shape) for leaf in leaves]
    )
    number = HyperDual(out, Stack(flat(slopes, ())))
    return [number, *map(HyperDual, aux)], [flat(rows, basis[0].shape[:1])]


def _gradient(jaxpr: ClosedJaxpr, xs: Sequence[Leaf]) -> tuple[list[Array], list[Leaf]]:
    """The gradient of the first output, and all the outputs."""
    form = FirstDerivative(leaves_out(jaxpr))

    def derivative(seconds: list[Array]) -> tuple[Array, list[Leaf]]:
        stacks = [Stack(lax.expand_dims(s, (0,))) for s in seconds]
        numbers = [HyperDual(x, ZERO, stack) for x, stack in zip(xs, stacks)]
        outs = interpret(jaxpr, form, numbers)
        return outs[0].seconds.coefficient(0), [out.primal for out in outs]

    zeros = [jnp.zeros_like(x) for x in xs]
    value, pull, outs = jax.vjp(derivative, zeros, has_aux=True)
    (slopes,) = pull(jnp.ones_like(value))
    return slopes, outs
