"""The generic rule: right for every primitive that JAX can differentiate twice.

It linearizes once for the part that is linear in the channels, and takes the derivative
of ``jax.jvp`` for the second derivative, over the pairs of the form.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
from jax import lax
from jaxtyping import Array, PyTree

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.descriptions import Joint
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.linear_operations import apply_linear, through
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.pair_forms import FirstOrder
from fomoh_jax._hyperdual.registry import GENERIC, Operation, rule


def forward(
    function: Callable,
    primals: Sequence[Array],
    tangents: Sequence[Array],
    *,
    effects: bool = True,
) -> tuple[PyTree, PyTree]:
    """``jax.jvp`` by this interpreter, which a ``custom_vjp`` inside does not stop.

    Without ``effects``, what the results do not need is left out, callbacks included.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*primals)
    one = lambda tangent: Stack(lax.expand_dims(tangent, (0,)))
    numbers = [HyperDual(x, one(t)) for x, t in zip(primals, tangents)]
    outs = interpret(jaxpr, FirstOrder(1), numbers, effects=effects)
    unflatten = jax.tree.structure(shapes).unflatten
    derivatives = [n.tangents.coefficient(0) for n in outs]
    return unflatten([n.primal for n in outs]), unflatten(derivatives)


def differentiable_part(
    op: Operation, args: Sequence[HyperDual]
) -> tuple[list[HyperDual], Callable]:
    """The operation as a function of the operands that vary alone.

    Returns:
      The operands that carry a channel, and a function of their primals that returns
      ``(outs, rest)``: the results that can carry a derivative, and the others.
    """
    active = [i for i, arg in enumerate(args) if not arg.is_constant]

    def function(*xs):
        primals = [arg.primal for arg in args]
        for i, x in zip(active, xs):
            primals[i] = x
        outs = op(*primals)
        inexact = [is_inexact(aval) for aval in op.outputs]
        return (
            [out for out, keep in zip(outs, inexact) if keep],
            [out for out, keep in zip(outs, inexact) if not keep],
        )

    return [args[i] for i in active], function


def _axes(op: Operation, args: Sequence[HyperDual], channel: str) -> list[int]:
    """The stacking axis of each result: the operands' own, if the rank allows it."""
    axis = max(getattr(arg, channel).axis for arg in args)
    return [min(axis, out.ndim) for out in op.outputs if is_inexact(out)]


def _pushed(
    joint: Joint, channels: Sequence[Channel], axes: Sequence[int]
) -> list[Channel]:
    """The results of a linear function, stacked along axes if they are stacks."""
    known = through(joint, channels)
    return apply_linear(joint, channels, axes) if known is None else known


@rule(GENERIC)
def generic(
    form: Form, op: Operation, args: Sequence[HyperDual], *, curved: bool = True
) -> list[HyperDual]:
    r"""The rule of every primitive :math:`y = f(x)` that JAX can differentiate twice.

    .. math:: y_i = f'(x)\, x_i, \qquad y_{ij} = f'(x)\, x_{ij} + f''(x)[x_i, x_j]

    by ``jax.linearize`` of the primitive, and by ``jax.jvp`` of ``jax.jvp`` over the
    pairs of the form. It is that of a primitive for which no other is registered.

    Args:
      form: which second-order coefficients are wanted.
      op: the operation.
      args: its operands.
      curved: whether the second derivative is anything but zero.

    Returns:
      One :class:`HyperDual` for each result.

    Example:
      >>> from jax.extend.core import Primitive
      >>> from fomoh_jax import hyperdual, register_rule
      >>> my_p = Primitive("my_generic")
      >>> rule = register_rule(my_p)(hyperdual.generic)
    """
    active, function = differentiable_part(op, args)
    primals = [arg.primal for arg in active]
    values = lambda *xs: function(*xs)[0]
    along = lambda u: lambda *xs: jax.jvp(values, xs, tuple(u))[1]
    try:
        outs, pushforward, rest = jax.linearize(function, *primals, has_aux=True)
        in_halves = True
    except ValueError:
        # JAX makes value and tangents of some primitives in one operation, which has no
        # two halves (reduce_window); jax.jvp needs none.
        outs, rest = function(*primals)
        pushforward = lambda *u: along(u)(*primals)
        in_halves = False

    def second_derivative(*directions):
        u, v = directions[: len(primals)], directions[len(primals) :]
        if in_halves:
            return forward(along(u), primals, v, effects=False)[1]
        # The operation without halves must be told that its tangents may vary, too.
        both = lambda *xs: along(xs[len(primals) :])(*xs[: len(primals)])
        still = [lax.full_like(x, 0) for x in u]
        return forward(both, (*primals, *u), (*v, *still), effects=False)[1]

    results = Results(outs, rest)
    return pushed(form, op, active, results, pushforward, curved and second_derivative)


class Results(NamedTuple):
    """The results of an operation: those that can carry a derivative, and the rest."""

    inexact: Sequence[Array]
    others: Sequence[Array]


def pushed(
    form: Form,
    op: Operation,
    active: Sequence[HyperDual],
    results: Results,
    pushforward: Callable,
    second_derivative: Callable | Literal[False],
) -> list[HyperDual]:
    """The numbers of an operation whose derivatives are given as functions.

    Args:
      active: the operands that carry a channel.
      results: the results of the operation on their primals.
      pushforward: of tangents of the active operands, those of the inexact results.
      second_derivative: of two directions, one after the other; ``False`` is zero.
    """
    primals = [arg.primal for arg in active]
    tangents_in = [arg.tangents for arg in active]
    seconds_in = [arg.seconds for arg in active]
    axes = _axes(op, active, "tangents")
    places = range(len(active))
    name = f"linearized {op.primitive.name}"
    joint = Joint(pushforward, name, op.params, primals, places)
    tangents = _pushed(joint, tangents_in, axes)
    seconds = _pushed(joint, seconds_in, _axes(op, active, "seconds"))
    if second_derivative:
        curved_terms = form.quadratic(second_derivative, tangents_in, axes)
        seconds = [s + b for s, b in zip(seconds, curved_terms)]

    inexact = iter(map(HyperDual, results.inexact, tangents, seconds))
    others = iter(map(HyperDual, results.others))
    return [next(inexact if is_inexact(out) else others) for out in op.outputs]
