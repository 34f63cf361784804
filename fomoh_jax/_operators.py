"""Differential operators: the Hessian of a function, its diagonal, the Laplacian."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Real, Shaped

from fomoh_jax._argnums import Varied, restricted
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate, primals_of
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.models import quadratic_model
from fomoh_jax._hyperdual.pair_forms import Diagonal
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._hyperdual.trace_forms import Trace, WeightedTrace


def hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    plan: Plan | Literal["auto"] = "auto",
) -> Callable[..., PyTree[Array]]:
    r"""The Hessian of a function.

    .. math:: H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j}

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      argnums: which positional argument, or arguments, to differentiate.
      plan: how it is computed, as in :func:`quadratic_model`.

    Returns:
      A function of the same arguments that returns the Hessian as ``jax.hessian`` does:
      for each output, a tree like the argument of trees like the argument, with leaves
      of shape ``[*out, *a, *b]``.

    Raises:
      TypeError: if a differentiated argument or an output is not of real
        floating-point numbers, or if ``plan`` is none.
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
        basis = jax.tree.structure(varied.args).unflatten(_standard_basis(varied))
        model = quadratic_model(function, varied.args, basis, plan=plan)
        _check_real_outputs("hessian", model.value)
        return jax.tree.map(
            lambda x: varied.blocks(jnp.moveaxis(x, (0, 1), (-2, -1))), model.curvature
        )

    return hessian_fun


def hessian_diagonal(
    fun: Callable, argnums: int | Sequence[int] = 0
) -> Callable[..., PyTree[Array]]:
    r"""The diagonal of the Hessian of a function, in one forward pass.

    .. math:: H_{ii} = \frac{\partial^2 f}{\partial x_i^2}

    It carries one second-order coefficient for each element of the arguments, not one
    for each pair.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      argnums: which positional argument, or arguments, to differentiate.

    Returns:
      A function of the same arguments that returns, for each output, a tree like the
      argument (with several ``argnums``, a tuple of trees) with leaves of shape
      ``[*out, *a]``: of a scalar function, a tree like the argument.

    Raises:
      TypeError: if a differentiated argument or an output is not of real
        floating-point numbers.
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
        seconds = _seconds(name, function, Diagonal(varied.size), varied)
        return jax.tree.map(lambda x: varied.pieces(jnp.moveaxis(x, 0, -1)), seconds)

    return hessian_diagonal_fun


def laplacian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    weights: ArrayLike | None = None,
) -> Callable[..., PyTree[Array]]:
    r"""The Laplacian of a function, in one forward pass.

    .. math::
      \Delta f = \operatorname{tr} H = \sum_i \frac{\partial^2 f}{\partial x_i^2},
      \qquad \text{or} \quad \operatorname{tr}(C H) = \sum_{ij} C_{ij}
      \frac{\partial^2 f}{\partial x_i \partial x_j}

    with ``weights`` :math:`C`. The sum is what is propagated, a single second-order
    coefficient beside one tangent for each element of the arguments: no element of the
    Hessian is ever computed.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      argnums: which positional argument, or arguments, to differentiate: all their
        elements together.
      weights: a real array of shape ``[D, D]`` for the ``D`` elements of the arguments,
        in the order of ``jax.flatten_util.ravel_pytree``. Only its symmetric part
        matters. By default the identity, which is cheaper than to pass it.

    Returns:
      A function of the same arguments that returns what ``fun`` returns, with the
      trace instead of each output, in its shape and dtype.

    Raises:
      TypeError: if a differentiated argument, an output or ``weights`` is not of real
        numbers, floating-point ones but for the weights.
      ValueError: if ``argnums`` is out of range, or ``weights`` is not ``[D, D]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import laplacian
      >>> f = lambda x: x[0] ** 2 * x[1]
      >>> print(laplacian(f)(jnp.array([3.0, 2.0])))
      4.0
      >>> mixed = jnp.array([[0.0, 1.0], [0.0, 0.0]])
      >>> print(laplacian(f, weights=mixed)(jnp.array([3.0, 2.0])))
      6.0

    References:
      Li et al., *A computational framework for neural network-based variational Monte
      Carlo with Forward Laplacian*, 2024, arXiv:2307.08214.
    """

    @wraps(fun)
    def laplacian_fun(*args, **kwargs):
        function, varied = restricted("laplacian", fun, argnums, args, kwargs)
        form = Trace(varied.size)
        if weights is not None:
            form = WeightedTrace(_symmetric_part(weights, varied.size))
        seconds = _seconds("laplacian", function, form, varied)
        return jax.tree.map(lambda x: x[0], seconds)

    return laplacian_fun


def _seconds(
    name: str, fun: Callable, form: Form, varied: Varied
) -> PyTree[Shaped[Array, "q ..."]]:
    """Second-order coefficients ``[q, *out]``, with every element for a direction."""
    channels = list(map(Stack, _standard_basis(varied)))
    out, _ = evaluate(fun, form, varied.args, channels)
    _check_real_outputs(name, primals_of(out))
    return coefficients_of(out, "seconds", form.q)


def _check_real_outputs(name: str, outputs: PyTree[Array]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name} needs a function whose outputs are real floating-point "
                f"numbers; its output{jax.tree_util.keystr(path)} has dtype "
                f"{leaf.dtype}."
            )


def _symmetric_part(weights: ArrayLike, size: int) -> Real[Array, "{size} {size}"]:
    """``½ (C + Cᵀ)`` of weights that are checked."""
    weights = jnp.asarray(weights)
    if jnp.iscomplexobj(weights):
        raise TypeError(
            f"weights must be an array of real numbers; got dtype {weights.dtype}."
        )
    if weights.shape != (size, size):
        raise ValueError(
            f"weights must have shape {[size, size]}, one row and one column for each "
            "element of the differentiated arguments; got shape "
            f"{list(weights.shape)}."
        )
    return (weights + weights.T) / 2


def _standard_basis(varied: Varied) -> list[Float[Array, "{varied.size} ..."]]:
    """One direction for each coordinate of the leaves together."""
    leaves, total = varied.leaves, varied.size
    offsets = np.cumsum([0, *map(jnp.size, leaves)])

    def directions(leaf: ArrayLike, offset: int) -> Array:
        dtype, size = jnp.result_type(leaf), jnp.size(leaf)
        if jax.typeof(leaf).weak_type:  # as of a Python number; an array would lose it
            basis = jnp.where(jnp.eye(total, size, -offset, dtype=bool), 1.0, 0.0)
        else:
            basis = jnp.eye(total, size, -offset, dtype=dtype)
        return basis.reshape(total, *jnp.shape(leaf))

    return [directions(leaf, int(offset)) for leaf, offset in zip(leaves, offsets)]
