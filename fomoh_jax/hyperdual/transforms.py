"""Second-order forward-mode transformations of functions."""

import operator
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fomoh_jax.hyperdual import rules  # noqa: F401  (fills the table of rules)
from fomoh_jax.hyperdual.adjoint import curvatures
from fomoh_jax.hyperdual.arguments import (
    check_primals,
    check_size,
    read_directions,
    read_tangents,
)
from fomoh_jax.hyperdual.forms import Cross, Diagonal, FirstOrder, Form, Offsets, Pairs
from fomoh_jax.hyperdual.interpreter import interpret
from fomoh_jax.hyperdual.number import (
    Channel,
    HyperDual,
    Stack,
    is_inexact,
    materialise,
)
from fomoh_jax.hyperdual.traces import Trace, WeightedTrace


class QuadraticModel(NamedTuple):
    """A function and its first two derivatives on a hyperplane.

    ``f(x + Σ_i a_i v_i) ≈ value + Σ_i a_i slope_i + ½ Σ_ij a_i a_j curvature_ij``.

    Attributes:
      value: ``f(x)``, a pytree as ``f`` returns it.
      slope: ``v_i · ∇f``, leaves of shape ``[k, *out]``.
      curvature: ``v_iᵀ H v_j``, leaves of shape ``[k, k, *out]``, symmetric to the last
        bit.
    """

    value: Any
    slope: Any
    curvature: Any


def hyper_jvp(
    fun: Callable, primals: Sequence[Any], tangents1: Any, tangents2: Any
) -> tuple[Any, Any, Any, Any]:
    r"""Evaluates a function on hyper-dual numbers, once.

    With :math:`\epsilon_1^2 = \epsilon_2^2 = 0`,

    .. math::
      f(x + v_1 \epsilon_1 + v_2 \epsilon_2) = f(x) + (\nabla f \cdot v_1)\, \epsilon_1
        + (\nabla f \cdot v_2)\, \epsilon_2 + (v_1^\top H v_2)\, \epsilon_1 \epsilon_2.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      primals: tuple of its arguments, as in ``jax.jvp``.
      tangents1: tuple like ``primals``: structure, shapes and dtypes; ``float0`` where
        a primal is of integers, as in ``jax.jvp``, or ``None`` for what is held fixed.
      tangents2: another one.

    Returns:
      ``(out, d1, d2, d12)``, each with the structure, shapes and dtypes of
      ``fun(*primals)``: the value, the two directional derivatives and the mixed second
      derivative. Where an output is of integers, derivatives are ``float0`` zeros.

    Raises:
      TypeError: if a structure or a dtype does not match the primals.
      ValueError: if a shape does not match the primals.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import hyper_jvp
      >>> f = lambda x: x[0] ** 2 * x[1]
      >>> x, (v1, v2) = jnp.array([3.0, 2.0]), jnp.eye(2)
      >>> out, d1, d2, d12 = hyper_jvp(f, (x,), (v1,), (v2,))
      >>> print(out, d1, d2, d12)
      18.0 12.0 9.0 6.0

    References:
      Fike and Alonso, *The development of hyper-dual numbers for exact
      second-derivative calculations*, 2011; Cobb et al., 2024, arXiv:2408.10419,
      section 2.
    """
    check_primals(fun, primals)
    channels = read_tangents(primals, tangents1, tangents2)
    out, _ = _evaluate(fun, Cross(), primals, channels)
    first = _coefficients(out, "tangents", 2)
    second = _coefficients(out, "seconds", 1)
    # An element of a NumPy array, which float0 has, would be no array any more.
    pick = lambda tree, i: jax.tree.map(lambda x: x[i, ...], tree)
    return _primals(out), pick(first, 0), pick(first, 1), pick(second, 0)


def quadratic_model(
    fun: Callable,
    primals: Sequence[Any],
    directions: Any,
    *,
    chunk_size: int | None = None,
    adjoint: bool = False,
    has_aux: bool = False,
) -> Any:
    r"""The quadratic model of a function on a hyperplane, in one forward pass.

    On ``primals + span(v_1, …, v_k)``,

    .. math::
      f\Big(x + \sum_i a_i v_i\Big) \approx f(x) + \sum_i a_i\, (v_i \cdot \nabla f)
        + \tfrac12 \sum_{ij} a_i a_j\, (v_i^\top H v_j).

    The value and the ``k`` slopes are computed once and shared by all the
    ``k (k + 1) / 2`` curvatures.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      primals: tuple of its arguments.
      directions: tuple like ``primals``, each leaf with a leading axis of length ``k``,
        or an :class:`fomoh_jax.Active` where only some of the ``k`` are not zero;
        ``None`` for an argument, or a part of one, that is held fixed.
      chunk_size: bound on memory. The rows of the curvature are computed that many at a
        time, one after the other, so that at most ``chunk_size * k`` second-order
        coefficients of an intermediate exist at once. By default all of them.
      adjoint: whether to get the curvature from one backward pass over what the
        second-order coefficients go through, in the place of carrying ``k²`` of them.
        That takes some ``3k`` evaluations of ``fun`` for each element of its output,
        where the forward pass takes ``k²``, but it keeps the ``k`` tangents of every
        layer, and cannot differentiate a ``while`` loop whose carry bends.
      has_aux: whether ``fun`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A :class:`QuadraticModel` with ``value`` (shape ``out``), ``slope``
      (``[k, *out]``) and ``curvature`` (``[k, k, *out]``), in the dtype of the output;
      with ``has_aux``, the pair ``(model, aux)``.

    Raises:
      TypeError: if a structure or a dtype does not match the primals, or if
        ``chunk_size`` is not a Python integer.
      ValueError: if a shape does not match, if the leaves disagree on ``k``, if an
        ``Active`` holds directions that are not in ascending order within ``k``, if
        ``chunk_size`` is not positive, or if it is given together with ``adjoint``.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import quadratic_model
      >>> def loss(w, x):
      ...   return jnp.sum((x @ w) ** 2)
      >>> w, x = jnp.array([1.0, 2.0]), jnp.array([[1.0, 1.0], [0.0, 2.0]])
      >>> model = quadratic_model(loss, (w, x), (jnp.eye(2), None))
      >>> print(model.value, model.slope)
      25.0 [ 6. 22.]
      >>> print(model.curvature)
      [[ 2.  2.]
       [ 2. 10.]]

    References:
      Cobb et al., *Second-Order Forward-Mode Automatic Differentiation for
      Optimization*, 2024, arXiv:2408.10419, section 3.
    """
    check_primals(fun, primals)
    k, channels = read_directions(primals, directions)
    if chunk_size is not None:
        chunk_size = check_size("chunk_size", chunk_size)
    if adjoint and chunk_size is not None:
        raise ValueError(
            "chunk_size bounds what a forward pass carries, and with adjoint=True "
            f"nothing of that is carried; got chunk_size={chunk_size}. Leave out one."
        )
    jaxpr, args, structure = _stage(fun, primals, channels, has_aux)
    of_out, _ = structure.children()
    # In the flattened pair the leaves of aux come last.
    wanted = of_out.num_leaves
    if adjoint and k:
        numbers, tables = curvatures(jaxpr, k, args, wanted)
    elif chunk_size is None or chunk_size >= k:
        numbers, tables = _at_once(jaxpr, k, args, wanted)
    else:
        numbers, tables = _in_chunks(jaxpr, k, args, wanted, chunk_size)
    out, aux = structure.unflatten(numbers)
    slope, curvature = _coefficients(out, "tangents", k), of_out.unflatten(tables)
    model = QuadraticModel(_primals(out), slope, curvature)
    return (model, _primals(aux)) if has_aux else model


def directional_curvature(
    fun: Callable, primals: Sequence[Any], directions: Any
) -> tuple[Any, Any, Any]:
    r"""Slope and curvature along each of several directions.

    .. math:: f(x), \quad v_i \cdot \nabla f, \quad v_i^\top H v_i

    for the cost of ``k`` curvatures and not of ``k²``.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      primals: tuple of its arguments.
      directions: tuple like ``primals``, each leaf with a leading axis of length ``k``,
        or an :class:`fomoh_jax.Active` where only some of the ``k`` are not zero;
        ``None`` for an argument, or a part of one, that is held fixed.

    Returns:
      ``(value, slope, curvature)`` with leaves of shape ``out``, ``[k, *out]`` and
      ``[k, *out]``, in the dtype of the output.

    Raises:
      TypeError: if a structure or a dtype does not match the primals.
      ValueError: if a shape does not match, if the leaves disagree on ``k``, or if an
        ``Active`` holds directions that are not in ascending order within ``k``.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import directional_curvature
      >>> f = lambda x: jnp.sum(x ** 3)
      >>> x = jnp.array([1.0, 2.0])
      >>> value, slope, curvature = directional_curvature(f, (x,), (jnp.eye(2),))
      >>> print(value, slope, curvature)
      9.0 [ 3. 12.] [ 6. 12.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3.
    """
    check_primals(fun, primals)
    k, channels = read_directions(primals, directions)
    out, _ = _evaluate(fun, Diagonal(k), primals, channels)
    return (
        _primals(out),
        _coefficients(out, "tangents", k),
        _coefficients(out, "seconds", k),
    )


def directional_derivatives(
    fun: Callable, primals: Sequence[Any], directions: Any, *, has_aux: bool = False
) -> Any:
    """Value and slopes ``v_i · ∇f`` alone: what first-order optimisers need.

    Arguments as :func:`quadratic_model`. Returns ``(value, slope)``, or
    ``((value, slope), aux)``. Unlike ``jax.jvp`` it sees through a ``custom_vjp``.
    """
    check_primals(fun, primals)
    k, channels = read_directions(primals, directions)
    out, aux = _evaluate(fun, FirstOrder(k), primals, channels, has_aux)
    derivatives = _primals(out), _coefficients(out, "tangents", k)
    return (derivatives, _primals(aux)) if has_aux else derivatives


def hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    chunk_size: int | None = None,
    adjoint: bool = False,
) -> Callable:
    r"""The Hessian of a function, in one forward pass.

    .. math:: H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j}

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      argnums: which positional argument, or arguments, to differentiate.
      chunk_size: bound on memory: that many rows at a time, as in
        :func:`quadratic_model`.
      adjoint: whether to sweep back once for each element of the output, as in
        :func:`quadratic_model`: from some ten variables on the faster way for a scalar.

    Returns:
      A function of the same arguments that returns the Hessian as ``jax.hessian`` does:
      for each output, a tree like the argument of trees like the argument, with leaves
      of shape ``[*out, *a, *b]``.

    Raises:
      TypeError: if a differentiated argument or an output is not of real
        floating-point numbers.
      ValueError: if ``argnums`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import hessian
      >>> print(hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([3.0, 2.0])))
      [[4. 6.]
       [6. 0.]]
    """

    @wraps(fun)
    def hessian_fun(*args, **kwargs):
        function, varied = _restricted("hessian", fun, argnums, args, kwargs)
        leaves, structure = jax.tree.flatten(varied)
        basis = structure.unflatten(_standard_basis(leaves))
        model = quadratic_model(
            function, varied, basis, chunk_size=chunk_size, adjoint=adjoint
        )
        inner = _argument_structure(argnums, varied)
        _check_real_outputs("hessian", model.value)
        return jax.tree.map(
            lambda curvature: _blocks(curvature, leaves, inner), model.curvature
        )

    return hessian_fun


def hessian_diagonal(fun: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    r"""The diagonal of the Hessian of a function, in one forward pass.

    .. math:: H_{ii} = \frac{\partial^2 f}{\partial x_i^2}

    for as many second-order coefficients as the arguments have elements, never for
    their square.

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
      trace in the place of each output, in its shape and dtype.

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


def _at_once(
    jaxpr: Any, k: int, args: Sequence[HyperDual], wanted: int
) -> tuple[list[HyperDual], list[Any]]:
    """As :func:`curvatures`, in one forward pass."""
    pairs = Pairs(k)
    numbers = interpret(jaxpr, pairs, args)
    places = np.zeros((k, k), np.int32)
    i, j = pairs.pairs
    places[i, j] = places[j, i] = np.arange(pairs.q)
    seconds = _coefficients(numbers[:wanted], "seconds", pairs.q)
    return numbers, [x[places] for x in seconds]


def _stage(
    fun: Callable, primals: Sequence[Any], channels: list[Channel], has_aux: bool
) -> tuple[Any, list[HyperDual], Any]:
    """``fun`` as a jaxpr, its arguments as numbers, and the tree of ``(out, aux)``."""
    primals = jax.tree.map(jnp.asarray, tuple(primals))
    jaxpr, shapes = jax.make_jaxpr(fun, return_shape=True)(*primals)
    args = list(map(HyperDual, jax.tree.leaves(primals), channels))
    return jaxpr, args, jax.tree.structure(_split(shapes, has_aux))


def _evaluate(
    fun: Callable,
    form: Form,
    primals: Sequence[Any],
    channels: list[Channel],
    has_aux: bool = False,
) -> tuple[Any, Any]:
    """``fun`` on hyper-dual numbers: ``(out, aux)`` with a number for each leaf."""
    jaxpr, args, structure = _stage(fun, primals, channels, has_aux)
    return structure.unflatten(interpret(jaxpr, form, args))


def _is_number(x: Any) -> bool:
    return isinstance(x, HyperDual)


def _primals(numbers: Any) -> Any:
    return jax.tree.map(lambda n: jnp.asarray(n.primal), numbers, is_leaf=_is_number)


def _coefficients(numbers: Any, channel: str, size: int) -> Any:
    """A channel of each number, dense, with the stacking axis in front."""

    def dense(number: HyperDual):
        if not is_inexact(number.primal):
            return np.zeros((size, *jnp.shape(number.primal)), jax.dtypes.float0)
        return materialise(getattr(number, channel), number.primal, size).array

    return jax.tree.map(dense, numbers, is_leaf=_is_number)


def _split(outputs: Any, has_aux: bool) -> tuple[Any, Any]:
    """``(out, aux)``, where ``aux`` is ``None`` without ``has_aux``."""
    if not has_aux:
        return outputs, None
    if not (isinstance(outputs, tuple) and len(outputs) == 2):
        raise TypeError(
            "with has_aux=True, fun must return a pair (out, aux); got "
            f"{jax.tree.structure(outputs)}."
        )
    out, aux = outputs
    return out, aux


def _in_chunks(
    jaxpr: Any, k: int, args: Sequence[HyperDual], wanted: int, chunk_size: int
) -> tuple[list[HyperDual], list[Any]]:
    """As :func:`curvatures`, at most ``chunk_size * k`` of them at a time."""
    needed = k // 2 + 1
    count = -(-needed // chunk_size)
    size = -(-needed // count)
    # The last chunk overlaps the one before it where the size does not divide.
    starts = np.minimum(np.arange(count) * size, needed - size)

    def chunk(start):
        form = Offsets(k, size, start)
        # Each chunk finds its own tangents: kept for the next, they would be those of
        # every layer.
        again, _ = lax.optimization_barrier((args, start))
        numbers = interpret(jaxpr, form, again)
        return _coefficients(numbers[:wanted], "seconds", form.q)

    places = _places_in_chunks(k, size, starts)

    def assemble(chunks):
        count, size, *out = chunks.shape
        return chunks.reshape(count * size, *out)[places]

    tables = [assemble(chunks) for chunks in lax.map(chunk, jnp.asarray(starts))]
    return interpret(jaxpr, FirstOrder(k), args), tables


def _places_in_chunks(k: int, size: int, starts: np.ndarray) -> np.ndarray:
    """``[k, k]``, where each pair is: in the first chunk that has its offset."""
    row, column = np.triu_indices(k)
    ahead = column - row <= k // 2
    offset = np.where(ahead, column - row, k - column + row)
    owner = np.minimum(offset // size, len(starts) - 1)
    places = np.zeros((k, k), np.int32)
    places[row, column] = places[column, row] = (
        owner * size * k + (offset - starts[owner]) * k + np.where(ahead, row, column)
    )
    return places


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
    out, _ = _evaluate(fun, form, varied, list(map(Stack, basis)))
    _check_real_outputs(name, _primals(out))
    return _coefficients(out, "seconds", form.q)


def _check_real(name: str, index: int, arg: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arg):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} needs real floating-point arguments; argument {index}"
                f"{jax.tree_util.keystr(path)} has dtype {dtype}."
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
    return [
        jnp.eye(
            total, jnp.size(leaf), -int(offset), dtype=jnp.result_type(leaf)
        ).reshape(total, *jnp.shape(leaf))
        for leaf, offset in zip(leaves, offsets)
    ]


def _split_elements(x: jax.Array, leaves: list[Any], axis: int) -> list[jax.Array]:
    """An axis over all the elements, cut into one part for each leaf."""
    offsets = np.cumsum([jnp.size(leaf) for leaf in leaves])[:-1]
    return jnp.split(x, offsets, axis)


def _pieces(diagonal: jax.Array, leaves: list[Any], structure: Any) -> Any:
    """``[D, *out]`` to a tree of ``[*out, *a]``."""
    rows = jnp.moveaxis(diagonal, 0, -1)
    return structure.unflatten(
        piece.reshape(*rows.shape[:-1], *jnp.shape(a)).astype(jnp.result_type(a))
        for a, piece in zip(leaves, _split_elements(rows, leaves, -1))
    )


def _blocks(curvature: jax.Array, leaves: list[Any], structure: Any) -> Any:
    """``[D, D, *out]`` to a tree of trees of ``[*out, *a, *b]``."""
    matrix = jnp.moveaxis(curvature, (0, 1), (-2, -1))
    return structure.unflatten(
        structure.unflatten(
            # As of a gradient, the dtype of a block is that of its first argument.
            block.reshape(*matrix.shape[:-2], *jnp.shape(a), *jnp.shape(b)).astype(
                jnp.result_type(a)
            )
            for b, block in zip(leaves, _split_elements(rows, leaves, -1))
        )
        for a, rows in zip(leaves, _split_elements(matrix, leaves, -2))
    )
