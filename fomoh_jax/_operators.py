"""Differential operators: the Hessian of a function, its diagonal, the Laplacian."""

import operator
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fomoh_jax._hyperdual.arguments import dtype_of
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate, primals_of
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.models import quadratic_model
from fomoh_jax._hyperdual.number import in_dtype
from fomoh_jax._hyperdual.pair_forms import Diagonal
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._hyperdual.trace_forms import Trace, WeightedTrace


def hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    plan: Plan | Literal["auto"] = "auto",
) -> Callable:
    r"""The Hessian of a function.

    .. math:: H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j}

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      argnums: which positional argument, or arguments, to differentiate.
      plan: how it is computed, as in :func:`quadratic_model`: by default in one forward
        pass. ``plans.adjoint()`` is faster for a scalar function of many variables.

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
        function, varied = _restricted("hessian", fun, argnums, args, kwargs)
        leaves, structure = jax.tree.flatten(varied)
        basis = structure.unflatten(_standard_basis(leaves))
        model = quadratic_model(function, varied, basis, plan=plan)
        inner = _argument_structure(argnums, varied)
        _check_real_outputs("hessian", model.value)
        return jax.tree.map(
            lambda curvature: _blocks(curvature, leaves, inner), model.curvature
        )

    return hessian_fun


def hessian_diagonal(fun: Callable, argnums: int | Sequence[int] = 0) -> Callable:
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
        function, varied = _restricted(name, fun, argnums, args, kwargs)
        leaves = jax.tree.leaves(varied)
        form = Diagonal(_size(leaves))
        seconds = _seconds(name, function, form, varied)
        inner = _argument_structure(argnums, varied)
        return jax.tree.map(lambda x: _pieces(x, leaves, inner), seconds)

    return hessian_diagonal_fun


def laplacian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    weights: jax.typing.ArrayLike | None = None,
) -> Callable:
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
        function, varied = _restricted("laplacian", fun, argnums, args, kwargs)
        size = _size(jax.tree.leaves(varied))
        form = Trace(size)
        if weights is not None:
            form = WeightedTrace(_symmetric_part(weights, size))
        seconds = _seconds("laplacian", function, form, varied)
        return jax.tree.map(lambda x: x[0], seconds)

    return laplacian_fun


def _normalised(argnum: int, count: int) -> int:
    argnum = operator.index(argnum)
    if not -count <= argnum < count:
        raise ValueError(
            f"argnums names argument {argnum}, but the function was called with "
            f"{count} positional arguments."
        )
    return argnum % count


def _restricted(
    name: str, fun: Callable, argnums: int | Sequence[int], args: Any, kwargs: Any
) -> tuple[Callable, tuple[Any, ...]]:
    """``fun`` as a function of the chosen arguments alone, and these."""
    chosen = argnums if isinstance(argnums, Sequence) else [argnums]
    places = [_normalised(i, len(args)) for i in chosen]
    varied = tuple(args[i] for i in places)
    for i, arg in zip(places, varied):
        _check_real(name, i, arg)

    def function(*xs):
        full = list(args)
        for i, x in zip(places, xs):
            full[i] = x
        return fun(*full, **kwargs)

    return function, varied


def _argument_structure(argnums: int | Sequence[int], varied: tuple[Any, ...]) -> Any:
    """The tree of the argument, or of the tuple of several."""
    return jax.tree.structure(varied if isinstance(argnums, Sequence) else varied[0])


def _seconds(name: str, fun: Callable, form: Form, varied: tuple[Any, ...]) -> Any:
    """Second-order coefficients ``[q, *out]``, with every element for a direction."""
    basis = _standard_basis(jax.tree.leaves(varied))
    out, _ = evaluate(fun, form, varied, list(map(Stack, basis)))
    _check_real_outputs(name, primals_of(out))
    return coefficients_of(out, "seconds", form.q)


def _check_real(name: str, index: int, arg: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arg):
        where = f"argument {index}{jax.tree_util.keystr(path)}"
        dtype = dtype_of(where, leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} needs real floating-point arguments; {where} has dtype "
                f"{dtype}."
            )


def _check_real_outputs(name: str, outputs: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name} needs a function whose outputs are real floating-point "
                f"numbers; its output{jax.tree_util.keystr(path)} has dtype "
                f"{leaf.dtype}."
            )


def _symmetric_part(weights: Any, size: int) -> jax.Array:
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


def _size(leaves: list[Any]) -> int:
    return sum(map(jnp.size, leaves))


def _standard_basis(leaves: list[Any]) -> list[jax.Array]:
    """One direction for each coordinate of the leaves together."""
    total = _size(leaves)
    offsets = np.cumsum([0, *map(jnp.size, leaves)])

    def directions(leaf: Any, offset: int) -> jax.Array:
        dtype, size = jnp.result_type(leaf), jnp.size(leaf)
        if jax.typeof(leaf).weak_type:  # as of a Python number; an array would lose it
            basis = jnp.where(jnp.eye(total, size, -offset, dtype=bool), 1.0, 0.0)
        else:
            basis = jnp.eye(total, size, -offset, dtype=dtype)
        return basis.reshape(total, *jnp.shape(leaf))

    return [directions(leaf, int(offset)) for leaf, offset in zip(leaves, offsets)]


def _split_elements(x: jax.Array, leaves: list[Any], axis: int) -> list[jax.Array]:
    """An axis over all the elements, cut into one part for each leaf."""
    offsets = np.cumsum([jnp.size(leaf) for leaf in leaves])[:-1]
    return jnp.split(x, offsets, axis)


def _pieces(diagonal: jax.Array, leaves: list[Any], structure: Any) -> Any:
    """``[D, *out]`` to a tree of ``[*out, *a]``."""
    rows = jnp.moveaxis(diagonal, 0, -1)
    return structure.unflatten(
        in_dtype(piece.reshape(*rows.shape[:-1], *jnp.shape(a)), jnp.result_type(a))
        for a, piece in zip(leaves, _split_elements(rows, leaves, -1))
    )


def _blocks(curvature: jax.Array, leaves: list[Any], structure: Any) -> Any:
    """``[D, D, *out]`` to a tree of trees of ``[*out, *a, *b]``."""
    matrix = jnp.moveaxis(curvature, (0, 1), (-2, -1))
    return structure.unflatten(
        structure.unflatten(
            # As of a gradient, the dtype of a block is that of its first argument.
            in_dtype(
                block.reshape(*matrix.shape[:-2], *jnp.shape(a), *jnp.shape(b)),
                jnp.result_type(a),
            )
            for b, block in zip(leaves, _split_elements(rows, leaves, -1))
        )
        for a, rows in zip(leaves, _split_elements(matrix, leaves, -2))
    )
