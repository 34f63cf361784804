"""A function and its derivatives along given directions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from fomoh_jax.hyperdual.adjoint import curvatures
from fomoh_jax.hyperdual.arguments import (
    check_primals,
    check_size,
    read_directions,
    read_tangents,
)
from fomoh_jax.hyperdual.channels import Stack
from fomoh_jax.hyperdual.evaluation import (
    coefficients_of,
    evaluate,
    primals_of,
    to_jaxpr,
)
from fomoh_jax.hyperdual.forms import Cross, Diagonal, FirstOrder, Offsets, Pairs
from fomoh_jax.hyperdual.interpreter import interpret
from fomoh_jax.hyperdual.loops import map_slices
from fomoh_jax.hyperdual.number import HyperDual
from fomoh_jax.hyperdual.parallel import is_mapped, over_devices


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
    out, _ = evaluate(fun, Cross(), primals, channels)
    first = coefficients_of(out, "tangents", 2)
    second = coefficients_of(out, "seconds", 1)
    # An element of a NumPy array, which float0 has, would be no array any more.
    pick = lambda tree, i: jax.tree.map(lambda x: x[i, ...], tree)
    return primals_of(out), pick(first, 0), pick(first, 1), pick(second, 0)


def quadratic_model(
    fun: Callable,
    primals: Sequence[Any],
    directions: Any,
    *,
    curvature: Literal["hessian", "gauss_newton"] = "hessian",
    loss: Callable | None = None,
    chunk_size: int | None = None,
    mesh_axis: str | None = None,
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

    With ``curvature="gauss_newton"`` it is the model of ``loss(fun(*primals))`` with
    the Gauss–Newton matrix in the place of the Hessian,

    .. math:: v_i^\top J^\top\, \nabla^2 \ell\, J v_j, \qquad J = \partial f,

    which is positive semidefinite if the loss is convex. Only ``k`` tangents pass
    through ``fun``; pairs of them meet in the loss alone.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      primals: tuple of its arguments.
      directions: tuple like ``primals``, each leaf with a leading axis of length ``k``,
        or a :class:`fomoh_jax.Stack` where only some of the ``k`` are not zero, or a
        :class:`fomoh_jax.Deferred` that is made where it is needed; ``None`` for an
        argument, or a part of one, that is held fixed.
      curvature: ``"hessian"`` or ``"gauss_newton"``.
      loss: with ``"gauss_newton"``, a function of what ``fun`` returns.
      chunk_size: bound on memory. The rows of the curvature are computed that many at a
        time, one after the other, so that at most ``chunk_size * k`` second-order
        coefficients of an intermediate exist at once. By default all of them.
      mesh_axis: the name of an axis of the mesh in use (``jax.set_mesh``, or
        ``jax.shard_map``). The rows of the curvature are then split over the devices
        along it: each carries all the tangents, and its share of the second-order
        coefficients. They exchange nothing but the slopes and curvatures of the output.
        The other axes of the mesh are left as they are, for a batch that is sharded.
        If an axis is of ``AxisType.Explicit``, data has to be an argument that is held
        fixed: ``jax.shard_map`` takes no function that closes over it.
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
      ValueError: if a shape does not match, if the leaves disagree on ``k``, if a
        ``Stack`` holds directions that are not in ascending order within ``k``, if
        ``chunk_size`` is not positive, if it or ``mesh_axis`` is given together with
        ``adjoint``, if ``mesh_axis`` names no axis or the number of its devices does
        not divide ``k``, if ``curvature`` is neither of the two, or if ``loss`` is
        missing or superfluous.

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
    if curvature not in ("hessian", "gauss_newton"):
        raise ValueError(
            f'curvature must be "hessian" or "gauss_newton"; got {curvature!r}.'
        )
    if (loss is None) != (curvature == "hessian"):
        raise ValueError(
            'curvature="gauss_newton" needs loss, the function of what fun returns, '
            f'and "hessian" takes none; got curvature={curvature!r}, loss={loss!r}.'
        )
    if loss is not None:
        outputs, aux = directional_derivatives(
            fun if has_aux else lambda *args: (fun(*args), None),
            primals,
            directions,
            has_aux=True,
        )
        model = quadratic_model(
            loss,
            *((part,) for part in outputs),
            chunk_size=chunk_size,
            mesh_axis=mesh_axis,
            adjoint=adjoint,
        )
        return (model, aux) if has_aux else model
    check_primals(fun, primals)
    k, channels = read_directions(primals, directions)
    if chunk_size is not None:
        chunk_size = check_size("chunk_size", chunk_size)
    if adjoint and chunk_size is not None:
        raise ValueError(
            "chunk_size bounds what a forward pass carries, and with adjoint=True "
            f"nothing of that is carried; got chunk_size={chunk_size}. Leave out one."
        )
    if adjoint and mesh_axis is not None:
        raise ValueError(
            "mesh_axis splits what a forward pass carries, and with adjoint=True "
            f"nothing of that is carried; got mesh_axis={mesh_axis!r}. Leave out one."
        )
    if mesh_axis is not None and not is_mapped(mesh_axis, k):
        everywhere = PartitionSpec()
        mapped = jax.shard_map(
            lambda primals, directions: quadratic_model(
                fun,
                primals,
                directions,
                chunk_size=chunk_size,
                mesh_axis=mesh_axis,
                has_aux=has_aux,
            ),
            in_specs=everywhere,
            out_specs=everywhere,
            axis_names={mesh_axis},
            check_vma=False,
        )
        return mapped(tuple(primals), tuple(directions))
    jaxpr, args, structure = to_jaxpr(fun, primals, channels, has_aux)
    of_out, _ = structure.children()
    # In the flattened pair the leaves of aux come last.
    wanted = of_out.num_leaves
    if adjoint and k:
        numbers, tables = curvatures(jaxpr, k, args, wanted)
    elif mesh_axis is not None and k:
        numbers = over_devices(jaxpr, k, args, wanted, mesh_axis, chunk_size)
        offsets = k // 2 + 1
        places = _places_in_chunks(k, offsets, np.zeros(1, int))
        seconds = coefficients_of(numbers[:wanted], "seconds", offsets * k)
        tables = [x[places] for x in seconds]
    elif chunk_size is None or chunk_size >= k:
        numbers, tables = _at_once(jaxpr, k, args, wanted)
    else:
        numbers, tables = _in_chunks(jaxpr, k, args, wanted, chunk_size)
    out, aux = structure.unflatten(numbers)
    slope = coefficients_of(out, "tangents", k)
    model = QuadraticModel(primals_of(out), slope, of_out.unflatten(tables))
    return (model, primals_of(aux)) if has_aux else model


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
        or a :class:`fomoh_jax.Stack` where only some of the ``k`` are not zero, or a
        :class:`fomoh_jax.Deferred` that is made where it is needed; ``None`` for an
        argument, or a part of one, that is held fixed.

    Returns:
      ``(value, slope, curvature)`` with leaves of shape ``out``, ``[k, *out]`` and
      ``[k, *out]``, in the dtype of the output.

    Raises:
      TypeError: if a structure or a dtype does not match the primals.
      ValueError: if a shape does not match, if the leaves disagree on ``k``, or if a
        ``Stack`` holds directions that are not in ascending order within ``k``.

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
    out, _ = evaluate(fun, Diagonal(k), primals, channels)
    return (
        primals_of(out),
        coefficients_of(out, "tangents", k),
        coefficients_of(out, "seconds", k),
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
    out, aux = evaluate(fun, FirstOrder(k), primals, channels, has_aux)
    derivatives = primals_of(out), coefficients_of(out, "tangents", k)
    return (derivatives, primals_of(aux)) if has_aux else derivatives


def _at_once(
    jaxpr: Any, k: int, args: Sequence[HyperDual], wanted: int
) -> tuple[list[HyperDual], list[Any]]:
    """As :func:`curvatures`, in one forward pass."""
    pairs = Pairs(k)
    numbers = interpret(jaxpr, pairs, args)
    places = np.zeros((k, k), np.int32)
    i, j = pairs.pairs
    places[i, j] = places[j, i] = np.arange(pairs.q)
    seconds = coefficients_of(numbers[:wanted], "seconds", pairs.q)
    return numbers, [x[places] for x in seconds]


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
        numbers = interpret(jaxpr, form, again)[:wanted]
        slopes = coefficients_of(numbers, "tangents", k)
        return slopes, coefficients_of(numbers, "seconds", form.q)

    slopes, seconds = map_slices(chunk, jnp.asarray(starts))
    values = interpret(jaxpr, FirstOrder(k), [HyperDual(x.primal) for x in args])
    outs = [
        HyperDual(value.primal, Stack(slope[0])) for value, slope in zip(values, slopes)
    ]
    places = _places_in_chunks(k, size, starts)
    joined = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    tables = [joined(x)[places] for x in seconds]
    return [*outs, *values[wanted:]], tables


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
