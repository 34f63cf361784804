"""The logarithm of a determinant, by Jacobi's formula.

With ``Y_i = A⁻¹ A_i``,

- ``(log det A)_t = tr(A⁻¹ A_t)``,
- ``(log det A)_s = tr(A⁻¹ A_s) - form(tr; Y_t, Y_t)``, with ``tr`` of a product.

The derivative that JAX gives solves with every tangent, and once more with every pair.
Here the matrix is inverted once: determinants of wave functions are many and small, and
a product with their inverse takes all the directions together.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.descriptions import Linear
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.registry import Operation


def slogdet(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    """The rule of ``jnp.linalg.slogdet``: sign, and logarithm of the modulus."""
    (a,) = args
    sign, log = op(a.primal)
    inverse = jnp.linalg.inv(a.primal)
    batch = log.ndim
    traced = _traced_with(inverse)
    trace = lambda channel: channel.mapped(traced, min(channel.axis, batch))
    tangents, seconds = trace(a.tangents), trace(a.seconds)
    # Where a direction moves one row alone, or one column, its Y_i has rank one.
    of_rank_one = any(map(a.tangents.is_apart_along, (batch, batch + 1)))
    if form.q and form.is_of_each_alone and of_rank_one:
        seconds = seconds - form.product(tangents, tangents)
    elif form.q:
        times = partial(jnp.matmul, inverse, precision=lax.Precision.HIGHEST)
        y = a.tangents.mapped(times, batch + 1)
        # The form adds a product and its mirror image, which are the same here.
        seconds = seconds - 0.5 * form.bilinear(_trace_of_product, y, y, batch)
    if not jnp.iscomplexobj(a.primal):
        return [HyperDual(sign), HyperDual(log, tangents, seconds)]
    real, imaginary = (
        [channel.mapped(part, channel.axis) for channel in (tangents, seconds)]
        for part in (jnp.real, jnp.imag)
    )
    return [_phase(form, sign, *imaginary), HyperDual(log, *real)]


def _traced_with(inverse: Inexact[Array, "*batch n n"]) -> Linear:
    """``tr(A⁻¹ x)`` as a function of ``x``."""
    batch = inverse.ndim - 2

    def terms(x: Array, dims: Sequence[int]) -> Array:
        products = jnp.swapaxes(inverse, -1, -2) * x
        added = [d for d in (batch, batch + 1) if d not in dims]
        left = jnp.sum(products, added, keepdims=True)
        order = (*dims, *range(batch), *added)
        return left.transpose(order).reshape(
            *(x.shape[d] for d in dims), *x.shape[:batch]
        )

    return Linear(
        partial(_trace_of_product, inverse),
        shape=inverse.shape[:-2],
        goes=(*range(batch), None, None),
        terms=terms,
    )


def _trace_of_product(
    x: Inexact[Array, "*batch n n"], y: Inexact[Array, "*batch n n"]
) -> Inexact[Array, "*batch"]:
    return jnp.sum(x * jnp.swapaxes(y, -1, -2), (-2, -1))


def _phase(form: Form, sign: Array, angle: Channel, curved: Channel) -> HyperDual:
    """``exp(i φ)``, of the coefficients of ``φ``."""
    turned = 1j * sign
    square = form.product(angle, angle) if form.q else ZERO
    as_complex = lambda channel: channel.mapped(
        lambda x: x.astype(sign.dtype), channel.axis
    )
    return HyperDual(
        sign,
        turned * as_complex(angle),
        form.scale_seconds(turned, as_complex(curved))
        + form.scale_seconds(-sign, as_complex(square)),
    )
