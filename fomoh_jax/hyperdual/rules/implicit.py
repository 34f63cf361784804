"""Linear solves: the derivative of ``A x = b``, and not of how it was solved.

With ``x = A⁻¹ b``, order by order,

- ``x_t = A⁻¹ (b_t - A_t x)``,
- ``x_s = A⁻¹ (b_s - A_s x - form(A_t, x_t))``,

so every coefficient is one more solve with the same matrix.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fomoh_jax.hyperdual.forms import FirstOrder, Form
from fomoh_jax.hyperdual.interpreter import interpret
from fomoh_jax.hyperdual.number import (
    Channel,
    HyperDual,
    add,
    apply_linear,
    scale,
    zeros_like_element,
)
from fomoh_jax.hyperdual.registry import Operation, rule


@rule("custom_linear_solve")
def _custom_linear_solve(form: Form, op: Operation, args: Sequence[HyperDual]):
    matvec_consts, consts, b = _split(op, args)
    matvec = op.params["jaxprs"].matvec
    outs = op(*(arg.primal for arg in args))
    x = [HyperDual(out) for out in outs[: len(b)]]

    def solve(channels: Sequence[Channel]) -> list[Channel]:
        fixed = [arg.primal for arg in (*matvec_consts, *consts)]
        zeros = [zeros_like_element(n.primal) for n in b]
        function = lambda *rhs: op(*fixed, *rhs)[: len(b)]
        return apply_linear(function, channels, zeros, [0] * len(b))

    def less(channels: Sequence[Channel], products: Sequence[Channel]):
        return [add(c, scale(-1, p)) for c, p in zip(channels, products)]

    along = FirstOrder(form.k)
    flat = [HyperDual(n.primal, n.tangents) for n in matvec_consts]
    products = interpret(matvec, along, [*flat, *x])  # A_t x
    tangents = solve(less([n.tangents for n in b], [p.tangents for p in products]))
    x = [HyperDual(n.primal, t) for n, t in zip(x, tangents)]
    products = interpret(matvec, form, [*matvec_consts, *x])  # A_s x + form(A_t, x_t)
    seconds = solve(less([n.seconds for n in b], [p.seconds for p in products]))
    x = [HyperDual(n.primal, n.tangents, s) for n, s in zip(x, seconds)]
    return [*x, *map(HyperDual, outs[len(b) :])]  # what is left is auxiliary


def _split(op: Operation, args: Sequence[HyperDual]):
    """The constants of the product, those of the other functions, and ``b``."""
    lengths = op.params["const_lengths"]
    first, total = lengths.matvec, sum(lengths)
    return list(args[:first]), list(args[first:total]), list(args[total:])


def _implicit(form: Form, op: Operation, args: Sequence[HyperDual], product):
    """``(A, b) -> x`` with ``product(A, x) = b``, where ``op`` gives its derivative.

    The derivative of the solve, as JAX knows it, is ``x_t`` of ``(A_t, b_t)``, and so
    ``x_s`` of ``(A_s, b_s - form(A_t, x_t))``.
    """
    primals = [arg.primal for arg in args]
    zeros = [zeros_like_element(x) for x in primals]
    x, pushforward = jax.linearize(lambda *xs: op(*xs)[0], *primals)
    push = lambda channels: apply_linear(
        lambda *ts: [pushforward(*ts)], channels, zeros, [0]
    )[0]
    tangents = push([arg.tangents for arg in args])
    *matrix, b = args
    bent = [
        form.bilinear(product(i), n.tangents, tangents, 0) for i, n in enumerate(matrix)
    ]
    seconds = push(
        [*(n.seconds for n in matrix), add(b.seconds, scale(-1, add(*bent)))]
    )
    return [HyperDual(x, tangents, seconds)]


@rule("triangular_solve")
def _triangular_solve(form: Form, op: Operation, args: Sequence[HyperDual]):
    params = op.params

    def product(_):
        return lambda a, x: _triangular_product(a, x, **params)

    return _implicit(form, op, args, product)


def _triangular_product(
    a, x, *, left_side, lower, transpose_a, conjugate_a, unit_diagonal
):
    keep = jnp.tril if lower else jnp.triu
    diagonal = -1 if unit_diagonal else 0
    a = keep(a, diagonal if lower else -diagonal)
    a = jnp.conj(a) if conjugate_a else a
    a = jnp.swapaxes(a, -1, -2) if transpose_a else a
    return a @ x if left_side else x @ a


@rule("tridiagonal_solve")
def _tridiagonal_solve(form: Form, op: Operation, args: Sequence[HyperDual]):
    # The three diagonals act on the rows above, at, and below.
    def product(place):
        return lambda d, x: d[..., None] * _shifted(x, 1 - place)

    return _implicit(form, op, args, product)


def _shifted(x, by):
    """The rows of ``x`` moved down by one, left alone, or moved up by one."""
    return lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0)] * (x.ndim - 2) + [(by, -by, 0), (0, 0, 0)],
    )
