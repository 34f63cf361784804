"""The Hessian of a function, its diagonal, and what comes with it in one pass."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fomoh_jax._argnums import restricted
from fomoh_jax._hyperdual.evaluation import coefficients_of
from fomoh_jax._hyperdual.models import QuadraticModel, basis_model
from fomoh_jax._hyperdual.pair_forms import Diagonal
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._operators.basis import (
    along_basis,
    check_outputs,
    gradient_in,
    standard_basis,
)
from fomoh_jax._varied import Varied


class ValueGradientHessian(NamedTuple):
    """A function and its first two derivatives.

    Attributes:
      value: ``f(x)``, a pytree as ``f`` returns it.
      gradient: if ``f`` returns one number, a tree like the argument (with several
        ``argnums``, a tuple of trees); otherwise such a tree for each output, with
        leaves of shape ``[*out, *a]``, as ``jax.jacfwd`` returns it.
      hessian: as :func:`hessian` returns it.
    """

    value: PyTree
    gradient: PyTree
    hessian: PyTree


def hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: bool = False,
) -> Callable[..., PyTree]:
    r"""The Hessian of a function.

    .. math:: H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j}

    Args:
      fun: a function of pytrees of real arrays that returns a pytree of arrays, real or
        complex.
      argnums: which positional argument, or arguments, to differentiate.
      plan: how it is computed, as in :func:`quadratic_model`; but ``"auto"``, for a
        scalar function that reverse mode can take, differentiates the gradient along
        each element, however few there are, as ``jax.hessian`` does; or computes no
        other entries than those of :func:`sparse_hessian` where that is less work.
      has_aux: whether ``fun`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A function of the same arguments that returns the Hessian as ``jax.hessian`` does:
      for each output, a tree like the argument of trees like the argument, with leaves
      of shape ``[*out, *a, *b]``; with ``has_aux``, the pair ``(hessian, aux)``.

    Raises:
      TypeError: if a differentiated argument is not of real floating-point numbers, or
        an output not of floating-point numbers; with ``has_aux``, if ``fun`` does not
        return a pair; if ``plan`` is neither ``"auto"`` nor a plan.
      ValueError: if ``argnums`` is out of range, or the plan cannot take the function.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import hessian
      >>> print(hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([3.0, 2.0])))
      [[4. 6.]
       [6. 0.]]
    """

    plan = chosen(plan)

    @wraps(fun)
    def hessian_fun(*args, **kwargs):
        function, varied = restricted("hessian", fun, argnums, args, kwargs)
        model, aux = _model("hessian", function, varied, plan, has_aux)
        matrix = _matrix(model, varied)
        return (matrix, aux) if has_aux else matrix

    return hessian_fun


def value_grad_and_hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: bool = False,
) -> Callable[..., PyTree]:
    r"""Value, gradient and Hessian of a function, in one pass.

    .. math:: f(x), \qquad \nabla f(x), \qquad
      H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j}

    Args:
      fun: as in :func:`hessian`.
      argnums: which positional argument, or arguments, to differentiate.
      plan: how it is computed, as in :func:`quadratic_model`; but ``"auto"``, for a
        scalar function that reverse mode can take, differentiates the gradient along
        each element, however few there are, as ``jax.hessian`` does; or computes no
        other entries than those of :func:`sparse_hessian` where that is less work.
      has_aux: whether ``fun`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A function of the same arguments that returns a :class:`ValueGradientHessian`;
      with ``has_aux``, the pair of it and ``aux``.

    Raises:
      TypeError, ValueError: as :func:`hessian`.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import value_grad_and_hessian
      >>> f = lambda x: x[0] ** 2 * x[1]
      >>> value, gradient, hessian = value_grad_and_hessian(f)(jnp.array([3.0, 2.0]))
      >>> print(value, gradient)
      18.0 [12.  9.]
      >>> print(hessian)
      [[4. 6.]
       [6. 0.]]
    """

    plan = chosen(plan)

    @wraps(fun)
    def value_grad_and_hessian_fun(*args, **kwargs):
        name = "value_grad_and_hessian"
        function, varied = restricted(name, fun, argnums, args, kwargs)
        model, aux = _model(name, function, varied, plan, has_aux)
        gradient = gradient_in(model.slope, varied)
        found = ValueGradientHessian(model.value, gradient, _matrix(model, varied))
        return (found, aux) if has_aux else found

    return value_grad_and_hessian_fun


def hessian_diagonal(
    fun: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., PyTree]:
    r"""The diagonal of the Hessian of a function, in one forward pass.

    .. math:: H_{ii} = \frac{\partial^2 f}{\partial x_i^2}

    It carries one second-order coefficient for each element of the arguments, and not
    one for each pair. As in :func:`laplacian`, an intermediate result that depends on
    few elements carries the coefficients of these alone.

    Args:
      fun: a function of pytrees of real arrays that returns a pytree of arrays, real or
        complex.
      argnums: which positional argument, or arguments, to differentiate.
      has_aux: whether ``fun`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A function of the same arguments that returns, for each output, a tree like the
      argument (with several ``argnums``, a tuple of trees) with leaves of shape
      ``[*out, *a]``: of a scalar function, a tree like the argument. With ``has_aux``,
      the pair ``(diagonal, aux)``.

    Raises:
      TypeError: if a differentiated argument is not of real floating-point numbers, or
        an output not of floating-point numbers; with ``has_aux``, if ``fun`` does not
        return a pair.
      ValueError: if ``argnums`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import hessian_diagonal
      >>> print(hessian_diagonal(lambda x: x[0] ** 2 * x[1])(jnp.array([3.0, 2.0])))
      [4. 0.]
    """

    @wraps(fun)
    def hessian_diagonal_fun(*args, **kwargs):
        name = "hessian_diagonal"
        function, varied = restricted(name, fun, argnums, args, kwargs)
        form = Diagonal(varied.size)
        out, aux = along_basis(name, function, form, varied, has_aux)
        diagonal = jax.tree.map(
            lambda x: varied.pieces(jnp.moveaxis(x, 0, -1)),
            coefficients_of(out, "seconds", form.q),
        )
        return (diagonal, aux) if has_aux else diagonal

    return hessian_diagonal_fun


def _model(
    name: str, fun: Callable, varied: Varied, plan: Plan, has_aux: bool
) -> tuple[QuadraticModel, PyTree]:
    """The model along the standard basis, and what else ``fun`` returns."""
    basis = jax.tree.structure(varied.args).unflatten(standard_basis(varied))
    model, aux = basis_model(fun, varied.args, basis, plan, has_aux)
    check_outputs(name, model.value)
    return model, aux


def _matrix(model: QuadraticModel, varied: Varied) -> PyTree[Array]:
    """The curvature along the standard basis in the structure of a Hessian."""
    return jax.tree.map(
        lambda x: varied.blocks(jnp.moveaxis(x, (0, 1), (-2, -1))), model.curvature
    )
