"""Solves and factorisations: the derivative of the equation that they solve.

With ``x = A⁻¹ b``, order by order,

- ``x_t = A⁻¹ (b_t - A_t x)``,
- ``x_s = A⁻¹ (b_s - A_s x - form(A_t, x_t))``,

so every coefficient is one more solve with the same matrix. A factorisation is alike,
``L U = A`` gives ``(L, U)_s`` as it gives ``(L, U)_t``: with ``A_s - form(L_t, U_t)``
instead of ``A_t``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.linear_operations import apply_linear
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.pair_forms import FirstOrder
from fomoh_jax._hyperdual.registry import Operation, rule


@rule("custom_linear_solve")
def _custom_linear_solve(form: Form, op: Operation, args: Sequence[HyperDual]):
    matvec_consts, consts, b = _split(op, args)
    matvec = op.params["jaxprs"].matvec
    outs = op(*(arg.primal for arg in args))
    x = [HyperDual(out) for out in outs[: len(b)]]

    def solve(channels: Sequence[Channel]) -> list[Channel]:
        fixed = [arg.primal for arg in (*matvec_consts, *consts)]
        function = lambda *rhs: op(*fixed, *rhs)[: len(b)]
        return apply_linear(function, channels, [0] * len(b))

    along = FirstOrder(form.k)
    flat = [HyperDual(n.primal, n.tangents) for n in matvec_consts]
    products = interpret(matvec, along, [*flat, *x])  # A_t x
    tangents = solve([n.tangents - p.tangents for n, p in zip(b, products)])
    x = [HyperDual(n.primal, t) for n, t in zip(x, tangents)]
    products = interpret(matvec, form, [*matvec_consts, *x])  # A_s x + form(A_t, x_t)
    seconds = solve([n.seconds - p.seconds for n, p in zip(b, products)])
    x = [HyperDual(n.primal, n.tangents, s) for n, s in zip(x, seconds)]
    return [*x, *map(HyperDual, outs[len(b) :])]  # what is left is auxiliary


def _split(
    op: Operation, args: Sequence[HyperDual]
) -> tuple[list[HyperDual], list[HyperDual], list[HyperDual]]:
    """The constants of the product, those of the other functions, and ``b``."""
    lengths = op.params["const_lengths"]
    first, total = lengths.matvec, sum(lengths)
    return list(args[:first]), list(args[first:total]), list(args[total:])


def _implicit(
    op: Operation, args: Sequence[HyperDual], curved_terms: Callable[..., Channel]
) -> list[HyperDual]:
    """``y`` with ``product(args[:-1], y) = args[-1]``, where JAX knows its derivative.

    Args:
      curved_terms: the terms of the product that are quadratic in first-order
        coefficients, from those of ``y`` and the other results of the operation.
    """
    primals = [arg.primal for arg in args]

    def function(*xs):
        first, *rest = op(*xs)
        return first, rest

    y, pushforward, rest = jax.linearize(function, *primals, has_aux=True)

    def push(channels: Sequence[Channel]) -> Channel:
        return apply_linear(lambda *ts: [pushforward(*ts)], channels, [0])[0]

    tangents = push([arg.tangents for arg in args])
    *others, last = (arg.seconds for arg in args)
    seconds = push([*others, last - curved_terms(tangents, *rest)])
    return [HyperDual(y, tangents, seconds), *map(HyperDual, rest)]


@rule("triangular_solve")
def _triangular_solve(form: Form, op: Operation, args: Sequence[HyperDual]):
    product = partial(_triangular_product, **op.params)
    curved_terms = lambda x: form.bilinear(product, args[0].tangents, x, 0)
    return _implicit(op, args, curved_terms)


def _triangular_product(
    a: Inexact[Array, "*batch n n"],
    x: Inexact[Array, "*batch _ _"],
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> Inexact[Array, "*batch _ _"]:
    keep = jnp.tril if lower else jnp.triu
    diagonal = -1 if unit_diagonal else 0
    a = keep(a, diagonal if lower else -diagonal)
    a = jnp.conj(a) if conjugate_a else a
    a = jnp.swapaxes(a, -1, -2) if transpose_a else a
    return a @ x if left_side else x @ a


@rule("tridiagonal_solve")
def _tridiagonal_solve(form: Form, op: Operation, args: Sequence[HyperDual]):
    # The three diagonals act on the rows above, at, and below.
    def curved_terms(x: Channel) -> Channel:
        terms = [
            form.bilinear(partial(_diagonal_product, by), diagonal.tangents, x, 0)
            for by, diagonal in zip((1, 0, -1), args)
        ]
        return sum(terms, ZERO)

    return _implicit(op, args, curved_terms)


def _diagonal_product(
    by: int, diagonal: Inexact[Array, "*batch n"], x: Inexact[Array, "*batch n m"]
) -> Inexact[Array, "*batch n m"]:
    return diagonal[..., None] * _shifted(x, by)


def _shifted(x: Inexact[Array, "*batch n m"], by: int) -> Inexact[Array, "*batch n m"]:
    """The rows of ``x`` moved down by one, left alone, or moved up by one."""
    return lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0)] * (x.ndim - 2) + [(by, -by, 0), (0, 0, 0)],
    )


@rule("lu")
def _lu(form: Form, op: Operation, args: Sequence[HyperDual]):
    def curved_terms(x: Channel, pivots: Array, permutation: Array) -> Channel:
        back = jnp.argsort(permutation)[..., None]

        def product(x, y):
            rank = min(x.shape[-2:])
            product = jnp.tril(x[..., :rank], -1) @ jnp.triu(y[..., :rank, :])
            return jnp.take_along_axis(product, back, axis=-2)

        return form.bilinear(product, x, x, 0)

    return _implicit(op, args, curved_terms)
