"""Elementwise primitives: the chain rule, with derivatives that JAX knows.

No derivative is typed here. ``φ'`` and ``φ''`` are ``jax.jvp`` of the primitive along
ones, once and twice; a number costs two evaluations, whatever the form.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.number import HyperDual, spread
from fomoh_jax._hyperdual.registry import Operation, rule
from fomoh_jax._hyperdual.rules.generic import differentiable_part, generic


def partial_derivative(
    function: Callable, index: int, jvp: Callable = jax.jvp
) -> Callable[..., tuple[PyTree, PyTree]]:
    """``(φ, ∂φ/∂x_index)`` of an elementwise function, itself elementwise."""

    def value_and_derivative(*xs):
        along = lambda x: function(*xs[:index], x, *xs[index + 1 :])
        return jvp(along, (xs[index],), (lax.full_like(xs[index], 1),))

    return value_and_derivative


@rule(
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e"),
    *("bessel_i1e", "cbrt", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc", "exp"),
    *("exp2", "expm1", "igamma", "igammac", "integer_pow", "lgamma", "log", "log1p"),
    *("log2", "logistic", "one_minus_square", "polygamma", "pow", "rsqrt", "sin"),
    *("sinh", "sqrt", "square", "tan", "tanh", "zeta"),
    *("polynomial", "regularized_incomplete_beta"),
)
def elementwise(
    form: Form,
    op: Operation,
    args: Sequence[HyperDual],
    *,
    curved: bool = True,
    linear_in: Sequence[int] = (),
) -> list[HyperDual]:
    r"""The rule of elementwise primitives, :math:`y = \varphi(x)`.

    .. math:: y_i = \varphi' x_i, \qquad
      y_{ij} = \varphi' x_{ij} + \varphi'' x_i x_j

    summed over the operands, with derivatives by ``jax.jvp`` of the primitive.

    Args:
      form: which second-order coefficients are wanted.
      op: the operation.
      args: its operands.
      curved: whether :math:`\varphi''` is anything but zero.
      linear_in: the operands in which :math:`\varphi` is linear, if there are several.

    Returns:
      One :class:`HyperDual` for each result.

    Example:
      >>> from jax.extend.core import Primitive
      >>> from fomoh_jax import hyperdual, register_rule
      >>> my_p = Primitive("my_elementwise")
      >>> rule = register_rule(my_p)(hyperdual.elementwise)
    """
    args = spread(args, op.outputs[0].shape)
    active, function = differentiable_part(op, args)
    if any(jnp.result_type(x.primal) != op.outputs[0].dtype for x in active):
        return generic(form, op, args)
    places = [i for i, arg in enumerate(args) if not arg.is_constant]
    primals = [arg.primal for arg in active]
    phi: Callable[..., Array] = lambda *xs: function(*xs)[0][0]
    curved = curved and form.q > 0
    moving = [not arg.tangents.is_zero for arg in active]

    values, tangents, seconds = [], [], []
    slopes = [partial_derivative(phi, i) for i in range(len(active))]
    second_derivatives = {}
    for i, (arg, slope) in enumerate(zip(active, slopes)):
        if curved and moving[i] and places[i] not in linear_in:
            twice = partial_derivative(slope, i)
            (value, first), (_, second_derivatives[i, i]) = twice(*primals)
        else:
            value, first = slope(*primals)
        values.append(value)
        tangents.append(first * arg.tangents)
        seconds.append(form.scale_seconds(first, arg.seconds))
    for i, j in combinations(range(len(active)), 2):
        if curved and moving[i] and moving[j]:
            _, (_, second_derivatives[i, j]) = partial_derivative(slopes[i], j)(
                *primals
            )
    along = [arg.tangents for arg in active]
    seconds += _curved_terms(form, second_derivatives, along)
    return [HyperDual(values[-1], sum(tangents, ZERO), sum(seconds, ZERO))]


def _curved_terms(
    form: Form,
    second_derivatives: dict[tuple[int, int], Array],
    tangents: Sequence[Channel],
) -> list[Channel]:
    """``Σ φ_ab x_a x_b`` of several operands, in at most one product for each.

    An operand meets, once, the sum of all that it is yet to meet: for ``x / y`` that is
    ``y_i (φ_yx x_j + ½ φ_yy y_j)``, and the same with i and j swapped.
    """
    curved_terms = []
    while second_derivatives:
        # Operands that are curved by themselves come first: they need a product anyway.
        operands = {operand for pair in second_derivatives for operand in pair}
        a = max(operands, key=lambda i: ((i, i) in second_derivatives, i))
        pairs = [pair for pair in second_derivatives if a in pair]
        met = {pair: second_derivatives.pop(pair) for pair in pairs}
        if list(met) == [(a, a)]:
            product = form.product(tangents[a], tangents[a])
            curved_terms.append(form.scale_seconds(met[a, a], product))
            continue
        others = []
        for (i, j), second in met.items():
            half = 0.5 if i == j else 1
            along = tangents[j if i == a else i]
            others.append(half * second * along)
        curved_terms.append(form.cross(tangents[a], sum(others, ZERO)))
    return curved_terms


@rule("max", "min", "abs", "rem")
def _piecewise(form: Form, op: Operation, args: Sequence[HyperDual]):
    if any(jnp.iscomplexobj(arg.primal) for arg in args):  # |z| is curved
        return generic(form, op, args)
    return elementwise(form, op, args, curved=False)


@rule("div")
def _div(form: Form, op: Operation, args: Sequence[HyperDual]):
    return elementwise(form, op, args, linear_in=(0,))
