"""The trace of the Hessian from random coordinates, where all are too many."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PRNGKeyArray, PyTree

from fomoh_jax._argnums import restricted
from fomoh_jax._hyperdual.arguments import check_key
from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack
from fomoh_jax._hyperdual.one_hot import OneHot
from fomoh_jax._varied import Varied
from fomoh_jax._weights import check_not_both, read_factor, read_weights
from fomoh_jax.curvature._coordinates import check_not_empty
from fomoh_jax.curvature._estimates import Estimate, check_sizes
from fomoh_jax.curvature._trace_estimates import trace_estimate


def sampled_trace(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    coordinates: int,
    weights: ArrayLike | None = None,
    factor: ArrayLike | None = None,
) -> Callable[..., Estimate]:
    r"""The trace of the Hessian from random coordinates, in one forward pass.

    .. math:: \operatorname{tr} H \approx \frac Dn \sum_{i \in I}
      \frac{\partial^2 f}{\partial x_i^2}, \qquad |I| = n

    for ``n`` of the ``D`` coordinates of the arguments, drawn without replacement. It
    is unbiased, of
    variance :math:`D^2\, (1 - n/D)\, S^2 / n`, where :math:`S^2` is the variance
    between the elements of the diagonal (divided by ``D - 1``): exact for ``n = D``, or
    where they are equal. :func:`hutchinson_trace`, whose variance is that of what is
    off the diagonal, is better where the Hessian is nearly diagonal.

    With weights :math:`C` or a factor :math:`S` the trace is that of :math:`C H` or
    :math:`S S^\top H`, as of :func:`fomoh_jax.laplacian`, of which this is the estimate
    in dimensions in which ``D`` tangents do not fit. Time and memory follow ``n``: the
    other coordinates are known to be zero, and a first layer takes ``n`` rows of its
    matrix instead of a product with all of it.

    Args:
      fun: a function of pytrees of real arrays that returns a pytree of arrays.
      argnums: which positional argument of ``fun``, or arguments, to differentiate: all
        their elements together.
      coordinates: how many coordinates ``n``, from 2 to ``D``; with a factor, how many
        of its columns.
      weights: real, shape ``[D]``, the diagonal of :math:`C`, of any sign.
      factor: real, shape ``[D, r]``, instead of ``weights``.

    Returns:
      A function of a PRNG key and the arguments of ``fun`` that returns an
      :class:`Estimate` of what ``fun`` returns. Under ``jit`` a standard error that is
      not used is not computed, and saves half of the pass.

    Raises:
      TypeError: if ``coordinates`` is no Python integer. At the call, if ``key`` is no
        PRNG key, if a differentiated argument is not of real floating-point numbers, an
        output not of floating-point numbers, or ``weights`` or ``factor`` not of real
        numbers.
      ValueError: if ``coordinates < 2``, or both ``weights`` and ``factor`` are given.
        At the call, if ``argnums`` is out of range, there are fewer coordinates, or a
        shape is not as said.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax.curvature import sampled_trace
      >>> f, x = lambda x: jnp.sum(x**2) + x[0] * x[1], jnp.ones(100_000)
      >>> value, error = sampled_trace(f, coordinates=16)(jax.random.key(0), x)
      >>> print(value, error)
      200000.0 0.0

    References:
      Hu, Shi, Karniadakis and Kawaguchi, *Hutchinson trace estimation for
      high-dimensional and high-order PINNs*, 2024, arXiv:2312.14499; Shi, Hu, Lin and
      Kawaguchi, *Stochastic Taylor derivative estimator*, 2024, arXiv:2412.00088.
    """
    name = "sampled_trace"
    n = check_sizes(coordinates, None, "coordinates")
    check_not_both(name, weights, factor)

    def estimate(key: PRNGKeyArray, /, *args: PyTree, **kwargs: PyTree) -> Estimate:
        check_key(key)
        function, varied = restricted(name, fun, argnums, args, kwargs)
        check_not_empty(name, varied)
        columns = None if factor is None else read_factor(factor, varied.size).T
        total = varied.size if columns is None else len(columns)
        if n > total:
            raise ValueError(
                f"coordinates must be at most {total}, the number of all of them; got "
                f"{n}."
            )
        index = distinct(key, n, total)
        scale = jnp.full(n, total, jnp.result_type(float))
        if weights is not None:
            diagonal = read_weights(weights, varied.size, diagonal=True)
            scale *= diagonal[index].astype(scale.dtype)
        if columns is None:
            channels = along_coordinates(index, varied)
        else:
            channels = list(map(Stack, varied.directions(columns[index])))
        value, error = trace_estimate(name, function, varied, channels, scale, n)
        # Once all are drawn nothing is left to chance.
        left = (1 - n / total) ** 0.5
        return Estimate(value, jax.tree.map(lambda x: left * x, error))

    return estimate


def along_coordinates(index: Int[Array, " n"], varied: Varied) -> list[Channel]:
    """Directions along the elements with those indices: a channel for each leaf."""
    channels, start = [], 0
    for leaf in varied.leaves:
        place, size = index - start, jnp.size(leaf)
        if not size:
            channels.append(ZERO)
            continue
        inside = (place >= 0) & (place < size)
        entries = inside.astype(jnp.result_type(leaf))
        place = jnp.where(inside, place, 0)
        channels.append(OneHot(entries, place, jnp.shape(leaf)))
        start += size
    return channels


def distinct(key: PRNGKeyArray, n: int, total: int) -> Int[Array, " n"]:
    """``n`` of the numbers from 0 to ``total - 1``, each subset as likely.

    By Floyd's algorithm, which takes n² operations and no permutation of all of them,
    where that is less.
    """
    if n * n > total:
        return jax.random.permutation(key, total)[:n]
    uniform = jax.random.randint(key, (n,), 0, jnp.arange(total - n, total) + 1)

    def draw(i, drawn):
        last = total - n + i
        taken = jnp.any(drawn == uniform[i])
        return drawn.at[i].set(jnp.where(taken, last, uniform[i]))

    return lax.fori_loop(0, n, draw, jnp.full_like(uniform, -1))
