"""Traces of the Hessian from some of its curvatures."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Real

from fomoh_jax._argnums import Varied
from fomoh_jax._hyperdual.channels import Channel
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate, primals_of
from fomoh_jax._hyperdual.pair_forms import Diagonal
from fomoh_jax._hyperdual.trace_forms import DiagonalTrace
from fomoh_jax._operators.basis import check_outputs, trace_in
from fomoh_jax.curvature._estimates import Estimate, estimated


def trace_estimate(
    name: str,
    fun: Callable,
    varied: Varied,
    channels: Sequence[Channel],
    weights: Real[Array, " n"],
    samples: int,
) -> Estimate:
    """The mean of the samples of :func:`trace_samples`, and its standard error.

    The mean is that of a pass which carries the sum of all. Both passes share their
    tangents, and a compiler drops the one that is not used.
    """
    out, _ = evaluate(fun, DiagonalTrace(weights), varied.args, channels)
    check_outputs(name, primals_of(out))
    mean = jax.tree.map(lambda x: x / samples, trace_in(out))
    each = trace_samples(name, fun, varied, channels, weights, samples)
    return Estimate(mean, jax.tree.map(lambda x: estimated(x)[1], each))


def trace_samples(
    name: str,
    fun: Callable,
    varied: Varied,
    channels: Sequence[Channel],
    weights: Real[Array, " n"],
    samples: int,
) -> PyTree[Array]:
    """``[samples, *out]``, sums of ``weights_i v_iᵀ H v_i``.

    Sample ``s`` is that of ``i = s``, ``samples + s``, ``2 samples + s`` and so on.
    """
    form = Diagonal(len(weights))
    out, _ = evaluate(fun, form, varied.args, channels)
    check_outputs(name, primals_of(out))

    def summed(curved: Array) -> Array:
        column = weights.reshape(-1, *[1] * (curved.ndim - 1))
        terms = column.astype(curved.dtype) * curved
        terms = terms.reshape(-1, samples, *curved.shape[1:])
        return jnp.sum(terms, 0).astype(curved.dtype)

    return jax.tree.map(summed, coefficients_of(out, "seconds", form.q))
