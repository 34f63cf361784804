"""A function and its derivatives along given directions."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, overload

import jax
from jaxtyping import PyTree

from fomoh_jax._hyperdual.arguments import (
    check_primals,
    read_directions,
    read_tangents,
)
from fomoh_jax._hyperdual.evaluation import (
    coefficients_of,
    evaluate,
    primals_of,
    to_jaxpr,
)
from fomoh_jax._hyperdual.pair_forms import Cross, Diagonal, FirstOrder
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperdual.plans.forward import Forward
from fomoh_jax._hyperdual.plans.plan import Plan


class QuadraticModel(NamedTuple):
    """A function and its first two derivatives on a hyperplane.

    ``f(x + Σ_i a_i v_i) ≈ value + Σ_i a_i slope_i + ½ Σ_ij a_i a_j curvature_ij``.

    Attributes:
      value: ``f(x)``, a pytree as ``f`` returns it.
      slope: ``v_i · ∇f``, leaves of shape ``[k, *out]``.
      curvature: ``v_iᵀ H v_j``, leaves of shape ``[k, k, *out]``, symmetric to the last
        bit.
    """

    value: PyTree
    slope: PyTree
    curvature: PyTree


class DirectionalCurvature(NamedTuple):
    """A function and its first two derivatives along each of several directions.

    Attributes:
      value: ``f(x)``, a pytree as ``f`` returns it.
      slope: ``v_i · ∇f``, leaves of shape ``[k, *out]``.
      curvature: ``v_iᵀ H v_i``, leaves of shape ``[k, *out]``.
    """

    value: PyTree
    slope: PyTree
    curvature: PyTree


def hyper_jvp(
    fun: Callable, primals: Sequence[PyTree], tangents1: PyTree, tangents2: PyTree
) -> tuple[PyTree, PyTree, PyTree, PyTree]:
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
      tangents2: the tangents along the second direction, given like ``tangents1``.

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


@overload
def quadratic_model(
    fun: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: Literal[False] = False,
) -> QuadraticModel: ...
@overload
def quadratic_model(
    fun: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: Literal[True],
) -> tuple[QuadraticModel, PyTree]: ...
def quadratic_model(
    fun: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: bool = False,
) -> QuadraticModel | tuple[QuadraticModel, PyTree]:
    r"""The quadratic model of a function on a hyperplane.

    On ``primals + span(v_1, …, v_k)``,

    .. math::
      f\Big(x + \sum_i a_i v_i\Big) \approx f(x) + \sum_i a_i\, (v_i \cdot \nabla f)
        + \tfrac12 \sum_{ij} a_i a_j\, (v_i^\top H v_j).

    The value and the ``k`` slopes are computed once and shared by all the
    ``k (k + 1) / 2`` curvatures.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      primals: tuple of its arguments.
      directions: tuple like ``primals``. A leaf is an array with a leading axis of
        length ``k``, a :class:`fomoh_jax.Stack` if only some of the ``k`` directions
        are not zero, a :class:`fomoh_jax.Deferred` to make them where they are needed,
        or, for a matrix, a :class:`fomoh_jax.LowRank`; ``None`` for an argument, or a
        part of one, that is held fixed.
      plan: how the curvature is computed, one of :mod:`fomoh_jax.plans`. ``"auto"`` is
        one forward pass, or, for a scalar function along five directions or more that
        reverse mode can take, ``plans.adjoint()``, which is faster and takes more
        memory the deeper the function is.
      has_aux: whether ``fun`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A :class:`QuadraticModel` with ``value`` (shape ``out``), ``slope``
      (``[k, *out]``) and ``curvature`` (``[k, k, *out]``), in the dtype of the output;
      with ``has_aux``, the pair ``(model, aux)``.

    Raises:
      TypeError: if a structure or a dtype does not match the primals; with ``has_aux``,
        if ``fun`` does not return a pair; or if ``plan`` is neither ``"auto"`` nor a
        plan.
      ValueError: if a shape does not match, if the leaves disagree on ``k``, if a
        ``Stack`` holds directions that are not in ascending order within ``k``, or if
        the plan cannot take the function.

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
    found, aux = _model(fun, primals, directions, chosen(plan), has_aux)
    return (found, aux) if has_aux else found


def basis_model(
    fun: Callable,
    primals: Sequence[PyTree],
    basis: PyTree,
    plan: Plan,
    has_aux: bool,
) -> tuple[QuadraticModel, PyTree]:
    """The model along the standard basis of all the primals, and ``aux`` or ``None``.

    Its curvature is the Hessian, which a plan may know a faster way to.
    """
    return _model(fun, primals, basis, plan, has_aux, along_basis=True)


def _model(
    fun: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    plan: Plan,
    has_aux: bool,
    along_basis: bool = False,
) -> tuple[QuadraticModel, PyTree]:
    k, _ = read_directions(primals, directions)
    # Along no direction there is nothing to compute, and nothing to split.
    way = plan if k else Forward()
    curvatures = way.hessians if along_basis else way.curvatures

    def model(primals, directions):
        _, channels = read_directions(primals, directions)
        jaxpr, args, structure = to_jaxpr(fun, primals, channels, has_aux)
        of_out, _ = structure.children()
        # In the flattened pair the leaves of aux come last.
        numbers, tables = curvatures(jaxpr, k, args, of_out.num_leaves)
        out, aux = structure.unflatten(numbers)
        slope = coefficients_of(out, "tangents", k)
        found = QuadraticModel(primals_of(out), slope, of_out.unflatten(tables))
        return found, primals_of(aux)

    return way.placed(model, k)(tuple(primals), tuple(directions))


@overload
def gauss_newton_model(
    outputs: Callable,
    loss: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: Literal[False] = False,
) -> QuadraticModel: ...
@overload
def gauss_newton_model(
    outputs: Callable,
    loss: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: Literal[True],
) -> tuple[QuadraticModel, PyTree]: ...
def gauss_newton_model(
    outputs: Callable,
    loss: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    plan: Plan | Literal["auto"] = "auto",
    has_aux: bool = False,
) -> QuadraticModel | tuple[QuadraticModel, PyTree]:
    r"""The quadratic model of ``loss(outputs(*primals))`` by Gauss and Newton.

    The Gauss–Newton matrix replaces the Hessian,

    .. math:: v_i^\top J^\top\, \nabla^2 \ell\, J v_j, \qquad
      J = \partial\, \mathrm{outputs},

    which is positive semidefinite if the loss is convex. Only ``k`` tangents pass
    through ``outputs``; pairs of them meet in the loss alone.

    Args:
      outputs: a function of pytrees of arrays that returns a pytree of arrays.
      loss: a function of what ``outputs`` returns.
      primals: tuple of the arguments of ``outputs``.
      directions: as in :func:`quadratic_model`.
      plan: how the curvature of the loss is computed, as in :func:`quadratic_model`.
      has_aux: whether ``outputs`` returns ``(out, aux)``, where ``aux`` is not
        differentiated.

    Returns:
      A :class:`QuadraticModel`; with ``has_aux``, the pair ``(model, aux)``.

    Raises:
      TypeError, ValueError: as :func:`quadratic_model`.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import gauss_newton_model
      >>> residual, loss = lambda x: x**2 - 1, lambda r: jnp.sum(r**2) / 2
      >>> x = jnp.array([3.0])
      >>> model = gauss_newton_model(residual, loss, (x,), (jnp.ones((1, 1)),))
      >>> print(model.slope, model.curvature)
      [48.] [[36.]]

    References:
      Schraudolph, *Fast curvature matrix-vector products for second-order gradient
      descent*, 2002.
    """
    (out, slope), aux = directional_derivatives(
        outputs if has_aux else lambda *args: (outputs(*args), None),
        primals,
        directions,
        has_aux=True,
    )
    model = quadratic_model(loss, (out,), (slope,), plan=plan)
    return (model, aux) if has_aux else model


def directional_curvature(
    fun: Callable, primals: Sequence[PyTree], directions: PyTree
) -> DirectionalCurvature:
    r"""Slope and curvature along each of several directions.

    .. math:: f(x), \quad v_i \cdot \nabla f, \quad v_i^\top H v_i

    for the cost of ``k`` curvatures and not of ``k²``.

    Args:
      fun: a function of pytrees of arrays that returns a pytree of arrays.
      primals: tuple of its arguments.
      directions: tuple like ``primals``. A leaf is an array with a leading axis of
        length ``k``, a :class:`fomoh_jax.Stack` if only some of the ``k`` directions
        are not zero, a :class:`fomoh_jax.Deferred` to make them where they are needed,
        or, for a matrix, a :class:`fomoh_jax.LowRank`; ``None`` for an argument, or a
        part of one, that is held fixed.

    Returns:
      A :class:`DirectionalCurvature` with ``value`` (shape ``out``), ``slope`` and
      ``curvature`` (both ``[k, *out]``), in the dtype of the output.

    Raises:
      TypeError: if a structure or a dtype does not match the primals.
      ValueError: if a shape does not match, if the leaves disagree on ``k``, or if a
        ``Stack`` holds directions that are not in ascending order within ``k``.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import directional_curvature
      >>> f = lambda x: jnp.sum(x ** 3)
      >>> x = jnp.array([1.0, 2.0])
      >>> curve = directional_curvature(f, (x,), (jnp.eye(2),))
      >>> print(curve.value, curve.slope, curve.curvature)
      9.0 [ 3. 12.] [ 6. 12.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3.
    """
    check_primals(fun, primals)
    k, channels = read_directions(primals, directions)
    out, _ = evaluate(fun, Diagonal(k), primals, channels)
    return DirectionalCurvature(
        primals_of(out),
        coefficients_of(out, "tangents", k),
        coefficients_of(out, "seconds", k),
    )


@overload
def directional_derivatives(
    fun: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    has_aux: Literal[False] = False,
) -> tuple[PyTree, PyTree]: ...
@overload
def directional_derivatives(
    fun: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    has_aux: Literal[True],
) -> tuple[tuple[PyTree, PyTree], PyTree]: ...
def directional_derivatives(
    fun: Callable,
    primals: Sequence[PyTree],
    directions: PyTree,
    *,
    has_aux: bool = False,
) -> tuple[PyTree, PyTree] | tuple[tuple[PyTree, PyTree], PyTree]:
    """Value and slopes ``v_i · ∇f`` alone: what first-order optimisers need.

    Arguments as :func:`quadratic_model`. Returns ``(value, slope)``, or
    ``((value, slope), aux)``. Unlike ``jax.jvp`` it sees through a ``custom_vjp``.
    """
    check_primals(fun, primals)
    k, channels = read_directions(primals, directions)
    out, aux = evaluate(fun, FirstOrder(k), primals, channels, has_aux)
    derivatives = primals_of(out), coefficients_of(out, "tangents", k)
    return (derivatives, primals_of(aux)) if has_aux else derivatives
