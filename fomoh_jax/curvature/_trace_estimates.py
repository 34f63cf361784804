"""Traces of the Hessian from some of its curvatures."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Real

from fomoh_jax._hyperdual.channels import Channel
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate, primals_of
from fomoh_jax._hyperdual.pair_forms import Diagonal
from fomoh_jax._hyperdual.trace_forms import DiagonalTrace
from fomoh_jax._operators.basis import check_outputs, trace_in
from fomoh_jax._varied import Varied
from fomoh_jax.curvature._estimates import Estimate, estimated


def trace_estimate(
    name: str,
    fun: Callable,
    varied: Varied,
    channels: Sequence[Channel],
    weights: Real[Array, " n"],
    probes: int,
) -> Estimate:
    """The mean of :func:`traces_of_probes`, and its standard error.

    The mean is that of a pass which carries the sum of all. Both passes share their
    tangents, and a compiler drops the one that is not used.
    """
    out, _ = evaluate(fun, DiagonalTrace(weights), varied.args, channels)
    check_outputs(name, primals_of(out))
    mean = jax.tree.map(lambda x: x / probes, trace_in(out))
    each = traces_of_probes(name, fun, varied, channels, weights, probes)
    return Estimate(mean, jax.tree.map(lambda x: estimated(x)[1], each))


def traces_of_probes(
    name: str,
    fun: Callable,
    varied: Varied,
    channels: Sequence[Channel],
    weights: Real[Array, " n"],
    probes: int,
) -> PyTree[Array]:
    """``[probes, *out]``, for each probe a sum of ``weights_i v_iᵀ H v_i``.

    Probe ``s`` has the directions ``s``, ``probes + s``, ``2 probes + s`` and so on.
    """
    form = Diagonal(len(weights))
    out, _ = evaluate(fun, form, varied.args, channels)
    check_outputs(name, primals_of(out))

    def summed(curved: Array) -> Array:
        column = weights.reshape(-1, *[1] * (curved.ndim - 1))
        terms = column.astype(curved.dtype) * curved
        terms = terms.reshape(-1, probes, *curved.shape[1:])
        return jnp.sum(terms, 0).astype(curved.dtype)

    return jax.tree.map(summed, coefficients_of(out, "seconds", form.q))
