"""The Laplacian of a function, and what comes with it in one pass."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

from jaxtyping import ArrayLike, PyTree

from fomoh_jax._argnums import restricted
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.evaluation import coefficients_of, primals_of
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.trace_forms import DiagonalTrace, Trace, WeightedTrace
from fomoh_jax._operators.basis import (
    along_basis,
    along_directions,
    gradient_in,
    trace_in,
)
from fomoh_jax._weights import check_not_both, read_factor, read_weights


class ValueGradientLaplacian(NamedTuple):
    """A function, its gradient and its Laplacian.

    Attributes:
      value: ``f(x)``, a pytree as ``f`` returns it.
      gradient: if ``f`` returns one number, a tree like the argument (with several
        ``argnums``, a tuple of trees); otherwise such a tree for each output, with
        leaves of shape ``[*out, *a]``, as ``jax.jacfwd`` returns it.
      laplacian: as :func:`laplacian` returns it.
    """

    value: PyTree
    gradient: PyTree
    laplacian: PyTree


def laplacian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    weights: ArrayLike | None = None,
    factor: ArrayLike | None = None,
    has_aux: bool = False,
) -> Callable[..., PyTree]:
    r"""The Laplacian of a function, in one forward pass.

    .. math::
      \Delta f = \operatorname{tr} H = \sum_i \frac{\partial^2 f}{\partial x_i^2},
      \qquad \text{or} \quad \operatorname{tr}(C H) = \sum_{ij} C_{ij}
      \frac{\partial^2 f}{\partial x_i \partial x_j}

    with weights :math:`C`. The sum is what is propagated, a single second-order
    coefficient beside one tangent for each element of the arguments: no element of the
    Hessian is ever computed. If an intermediate result depends on few of these
    elements, as the features of one electron do, only its nonzero tangents are carried.
    After an operation that mixes more than half of all elements there is one tangent
    for each element. These dependencies are found while tracing. (A dense ``[D, D]`` of
    weights, and a ``factor``, mix all elements from the start.)

    Args:
      fun: a function of pytrees of real arrays that returns a pytree of arrays, real or
        complex.
      argnums: which positional argument of ``fun``, or arguments, to differentiate: all
        their elements together.
      weights: real, for the ``D`` elements of the arguments in the order of
        ``jax.flatten_util.ravel_pytree``: shape ``[D]``, the diagonal of :math:`C`, of
        any sign (inverse masses, the signature of a wave operator), which takes about
        as long as no weights; or shape ``[D, D]``, of which only the symmetric part
        matters, and which adds a product with :math:`C` for each product of tangents.
        By default the identity.
      factor: real, shape ``[D, r]``: :math:`S` of :math:`C = S S^\top`, instead of
        ``weights``. The columns of :math:`S` are the directions, and the cost is that
        of ``r`` tangents, not of ``D``.
      has_aux: whether ``fun`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A function of the same arguments that returns what ``fun`` returns, with the
      trace instead of each output, in its shape and dtype; with ``has_aux``, the pair
      ``(laplacian, aux)``.

    Raises:
      TypeError: if a differentiated argument is not of real floating-point numbers, an
        output not of floating-point numbers, or ``weights`` or ``factor`` not of real
        numbers; with ``has_aux``, if ``fun`` does not return a pair.
      ValueError: if ``argnums`` is out of range, a shape is not as said, or both
        ``weights`` and ``factor`` are given.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import laplacian
      >>> f, x = lambda x: x[0] ** 2 * x[1] ** 2, jnp.array([3.0, 2.0])
      >>> print(laplacian(f)(x))
      26.0
      >>> print(laplacian(f, weights=jnp.array([1.0, -1.0]))(x))
      -10.0
      >>> print(laplacian(f, weights=jnp.array([[0.0, 1.0], [0.0, 0.0]]))(x))
      24.0
      >>> print(laplacian(f, factor=jnp.array([[1.0], [1.0]]))(x))  # (∂₁ + ∂₂)² f
      74.0

    References:
      Li et al., *A computational framework for neural network-based variational Monte
      Carlo with Forward Laplacian*, 2024, arXiv:2307.08214.
    """
    check_not_both("laplacian", weights, factor)

    @wraps(fun)
    def laplacian_fun(*args, **kwargs):
        name = "laplacian"
        function, varied = restricted(name, fun, argnums, args, kwargs)
        if factor is None:
            form = _form(weights, varied.size)
            out, aux = along_basis(name, function, form, varied, has_aux)
        else:
            columns = read_factor(factor, varied.size).T
            form = Trace(len(columns))
            directions = list(map(Stack, varied.directions(columns)))
            out, aux = along_directions(
                name, function, form, varied, directions, has_aux
            )
        traces = trace_in(out)
        return (traces, aux) if has_aux else traces

    return laplacian_fun


def value_grad_and_laplacian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    weights: ArrayLike | None = None,
    has_aux: bool = False,
) -> Callable[..., PyTree]:
    r"""Value, gradient and Laplacian of a function, in one forward pass.

    .. math:: f(x), \qquad \nabla f(x), \qquad \Delta f(x), \quad \text{or} \quad
      \operatorname{tr}(C H)

    with ``weights`` :math:`C`, as in :func:`laplacian`. The gradient is what the pass
    to the Laplacian carries anyway; weights do not change it.

    Args:
      fun: as in :func:`laplacian`.
      argnums: which positional argument of ``fun``, or arguments, to differentiate.
      weights: real, shape ``[D]`` or ``[D, D]``, as in :func:`laplacian`.
      has_aux: whether ``fun`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A function of the same arguments that returns a :class:`ValueGradientLaplacian`;
      with ``has_aux``, the pair of it and ``aux``.

    Raises:
      TypeError, ValueError: as :func:`laplacian`.

    Example:
      The kinetic energy of a wave function, from its logarithm:

      >>> import jax.numpy as jnp
      >>> from fomoh_jax import value_grad_and_laplacian
      >>> def kinetic_energy(log_psi, x):
      ...   _, gradient, laplacian = value_grad_and_laplacian(log_psi)(x)
      ...   return -(laplacian + jnp.sum(gradient**2)) / 2
      >>> log_psi = lambda x: -jnp.sum(x**2) / 2  # the ground state of an oscillator
      >>> x = jnp.array([1.0, 0.5, 0.0])
      >>> print(kinetic_energy(log_psi, x) + jnp.sum(x**2) / 2)  # 3/2 everywhere
      1.5

    References:
      Li et al., 2024, arXiv:2307.08214.
    """

    @wraps(fun)
    def value_grad_and_laplacian_fun(*args, **kwargs):
        name = "value_grad_and_laplacian"
        function, varied = restricted(name, fun, argnums, args, kwargs)
        form = _form(weights, varied.size)
        out, aux = along_basis(name, function, form, varied, has_aux)
        gradient = gradient_in(coefficients_of(out, "tangents", form.k), varied)
        found = ValueGradientLaplacian(primals_of(out), gradient, trace_in(out))
        return (found, aux) if has_aux else found

    return value_grad_and_laplacian_fun


def _form(weights: ArrayLike | None, size: int) -> Form:
    """The trace with weights for the ``size`` elements that vary."""
    if weights is None:
        return Trace(size)
    weights = read_weights(weights, size)
    return DiagonalTrace(weights) if weights.ndim == 1 else WeightedTrace(weights)
