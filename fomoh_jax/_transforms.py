"""Gradient transformations that make their own gradients, by forward passes."""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from fomoh_jax import plans
from fomoh_jax._hyperdual import (
    QuadraticModel,
    directional_derivatives,
    quadratic_model,
)
from fomoh_jax._hyperdual.arguments import check_key
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperplane import combination, gram
from fomoh_jax._value_fn import (
    check_call,
    check_keywords,
    outputs_in_use,
    outputs_of,
    scalar_loss,
    solve_dtype,
)
from fomoh_jax.directions import Directions
from fomoh_jax.solvers import Outcome, Solver, SolverState, newton
from fomoh_jax.solvers._solver import predicted_reduction


class ScaleByForwardGradientState(NamedTuple):
    """State of :func:`scale_by_forward_gradient`.

    Attributes:
      key: PRNG key of the next step's directions; ``None`` if they are not random.
      value: loss at the last evaluated point; 0 before the first.
      slope: ``[k]``, its directional derivatives there.
      directions_state: that of the source of directions.
      aux: what ``value_fn`` returned beside it, with ``has_aux``; otherwise ``None``.
    """

    key: Any
    value: Float[Array, ""]
    slope: Float[Array, " k"]
    directions_state: PyTree
    aux: PyTree


class ScaleByHyperplaneState(NamedTuple):
    """State of :func:`scale_by_hyperplane`.

    Attributes:
      key: PRNG key of the next step's directions; ``None`` if they are not random.
      model: value, slope ``[k]`` and curvature ``[k, k]`` of the last step; zeros
        before the first.
      coefficients: ``[k]``, the last step along each direction, before any learning
        rate.
      predicted_reduction: by how much the model falls on the last step, taken whole.
      actual_reduction: by how much the loss fell: on the last step and the same batch,
        where the search looks ahead; otherwise from the last model to this one, on the
        step before the last and another batch. 0 before it is known. Both reductions
        are NaN after a loss that was not finite.
      steps: how many updates were made, int32.
      accepted: how many of them moved the parameters, int32: those with a finite loss
        and a step that is not zero and that the search did not refuse.
      directions_state: that of the source of directions.
      solver_state: that of the descent and of the search, such as the step size or
        the radius.
      aux: what ``value_fn`` returned beside the value, with ``has_aux``; otherwise
        ``None``.
    """

    key: Any
    model: QuadraticModel
    coefficients: Float[Array, " k"]
    predicted_reduction: Float[Array, ""]
    actual_reduction: Float[Array, ""]
    steps: Int[Array, ""]
    accepted: Int[Array, ""]
    directions_state: PyTree
    solver_state: SolverState
    aux: PyTree


def scale_by_forward_gradient(
    directions: Directions,
    *,
    key: chex.PRNGKey | int | None = None,
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the updates by a forward gradient.

    .. math:: g = \frac1k \sum_i (\nabla f \cdot v_i)\, v_i

    an unbiased estimate of the gradient if :math:`E[v v^\top] = I`, from one forward
    pass that carries ``k`` tangents. (With ``directions.layerwise()`` each ``v``
    moves one of the :math:`L` layers, and the result estimates
    :math:`\nabla f / L`.)

    Args:
      directions: where to look, such as ``directions.gaussian(1)``.
      key: PRNG key, typed or legacy, or seed of the directions. The state holds a key
        of the same kind; a seed becomes a typed key. By default seed 0 is used, except
        that the links of a chain get different keys: a link, when it is first
        initialised, counts the others that were initialised on the same arrays since
        it was created. Give each link a key where that cannot tell: under
        ``optax.inject_hyperparams`` and ``optax.flatten``, or for one link used twice.
      has_aux: whether ``value_fn`` returns ``(value, aux)``. The aux of the evaluated
        point is then in the state.
      aux_struct: with ``has_aux``, the structure, shapes and dtypes of the aux (arrays
        or ``jax.ShapeDtypeStruct``). The first state then holds zeros like it, so that
        the state keeps its structure, as ``jax.lax.scan`` demands. Without it the
        first state's aux is ``None``.

    Returns:
      A gradient transformation whose ``update`` takes ``value_fn`` and, by keyword, its
      further arguments. The updates handed in may be ``None``.

    Raises:
      TypeError: if ``directions`` is no source of directions.
      ValueError, TypeError: from ``init`` and ``update``, for parameters that are not
        real floating-point numbers, a missing ``params`` or ``value_fn``, a loss that
        is no real scalar, or keyword arguments that it does not take.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from fomoh_jax import directions, scale_by_forward_gradient
      >>> params = jnp.array([1.0, 2.0])
      >>> tx = scale_by_forward_gradient(directions.rademacher(1))
      >>> state = tx.init(params)
      >>> loss = lambda x: 3 * x[0]
      >>> g, state = tx.update(None, state, params, value_fn=loss)
      >>> print(g[0], jnp.abs(g[1]), jnp.abs(state.slope), state.value)
      3.0 3.0 [3.] 3.0

    References:
      Baydin et al., *Gradients without Backpropagation*, 2022, arXiv:2202.08587.
    """

    _check_kind("directions", directions, Directions, "directions.gaussian(1)")
    first_key = _key_source(key, directions)

    def init_fn(params):
        dtype = solve_dtype(params)
        return ScaleByForwardGradientState(
            key=first_key(params),
            value=jnp.zeros((), dtype),
            slope=jnp.zeros((directions.count(params),), dtype),
            directions_state=directions.init(params),
            aux=_zeros(aux_struct),
        )

    def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
        value_fn = check_call(params, value_fn, extra_args)
        check_keywords([value_fn], extra_args)
        loss = scalar_loss(value_fn, extra_args, has_aux)
        dtype = solve_dtype(params)
        next_key, sample_key = _split(state.key)
        memory = directions.advance(state.directions_state, params)
        vectors = directions.draw(sample_key, params, updates, memory)
        (value, slope), aux = directional_derivatives(
            loss, (params,), (vectors,), has_aux=True
        )
        value, slope = value.astype(dtype), slope.astype(dtype)
        weights = jnp.where(jnp.isfinite(value), slope / len(slope), 0)
        step = combination(weights, vectors, dtype)
        return step, ScaleByForwardGradientState(next_key, value, slope, memory, aux)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_hyperplane(
    directions: Directions,
    solver: Solver | None = None,
    *,
    key: chex.PRNGKey | int | None = None,
    curvature: Literal["hessian", "gauss_newton"] = "hessian",
    plan: plans.Plan | Literal["auto"] = "auto",
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the updates by the step to the minimum of the model on a hyperplane.

    .. math:: g = V \kappa, \qquad \kappa = (V^\top H V)^{-1}\, V^\top \nabla f

    for directions :math:`V = [v_1 \dots v_k]`, with the system solved as ``solver``
    says. By default value, slopes and curvature come from one forward pass. Like a
    gradient, ``g`` points uphill: a step of learning rate 1 goes to the minimum.

    Args:
      directions: what spans the hyperplane, such as ``directions.gaussian(8)``.
      solver: how the k×k system is solved; ``solvers.newton()`` by default. It is
        solved in float32, or in the parameters' precision if that is higher.
      key: PRNG key, typed or legacy, or seed of the directions. The state holds a key
        of the same kind; a seed becomes a typed key. By default seed 0 is used, except
        that the links of a chain get different keys: a link, when it is first
        initialised, counts the others that were initialised on the same arrays since
        it was created. Give each link a key where that cannot tell: under
        ``optax.inject_hyperparams`` and ``optax.flatten``, or for one link used twice.
      curvature: ``"hessian"``, or ``"gauss_newton"`` for a loss in two parts:
        ``update`` then takes ``outputs_fn`` as well, and the loss is
        ``value_fn(outputs_fn(params))``. See :func:`fomoh_jax.gauss_newton_model`.
      plan: how the model is computed, one of :mod:`fomoh_jax.plans`; ``"auto"`` is a
        forward pass. Where ``value_fn`` takes more than the parameters,
        ``plans.split(mesh_axis)`` needs a mesh whose axes are all of
        ``AxisType.Auto``. (A batch that is sharded needs no plan.)
      has_aux: whether ``value_fn`` returns ``(value, aux)``. The aux of the evaluated
        point is then in the state.
      aux_struct: with ``has_aux``, the structure, shapes and dtypes of the aux (arrays
        or ``jax.ShapeDtypeStruct``). The first state then holds zeros like it, so that
        the state keeps its structure, as ``jax.lax.scan`` demands. Without it the
        first state's aux is ``None``.

    Returns:
      A gradient transformation whose ``update`` takes ``value_fn`` and, by keyword, its
      further arguments. The updates handed in may be ``None``. A non-finite loss gives
      a zero step.

    Raises:
      TypeError: if ``directions``, ``solver`` or ``plan`` is not what its name says.
      ValueError: if ``curvature`` is neither of the two.
      ValueError, TypeError: from ``init`` and ``update``, for parameters that are not
        real floating-point numbers, a missing ``params`` or ``value_fn``, a loss that
        is no real scalar, or keyword arguments that it does not take.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from fomoh_jax import directions, scale_by_hyperplane
      >>> loss = lambda x, target: jnp.sum((x - target) ** 2)
      >>> tx = optax.chain(
      ...   scale_by_hyperplane(directions.gaussian(2)),
      ...   optax.scale_by_learning_rate(1.0),
      ... )
      >>> params, target = jnp.zeros(2), jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> step, state = tx.update(None, state, params, value_fn=loss, target=target)
      >>> print(jnp.round(optax.apply_updates(params, step), 4))
      [1. 2.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3 (FoMoH-KD).
    """
    solver = newton() if solver is None else solver
    _check_kind("directions", directions, Directions, "directions.gaussian(8)")
    _check_kind("solver", solver, Solver, "solvers.newton()")
    if curvature not in ("hessian", "gauss_newton"):
        raise ValueError(
            f'curvature must be "hessian" or "gauss_newton"; got {curvature!r}.'
        )
    way = plans.forward() if plan == "auto" else chosen(plan)
    first_key = _key_source(key, directions)

    def init_fn(params):
        dtype = solve_dtype(params)
        k = directions.count(params)
        # Each array is made anew: a buffer that is there twice cannot be donated.
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        return ScaleByHyperplaneState(
            key=first_key(params),
            model=QuadraticModel(zeros(), zeros(k), zeros(k, k)),
            coefficients=zeros(k),
            predicted_reduction=zeros(),
            actual_reduction=zeros(),
            steps=jnp.zeros((), jnp.int32),
            accepted=jnp.zeros((), jnp.int32),
            directions_state=directions.init(params),
            solver_state=jax.tree.map(jnp.array, solver.init()),
            aux=_zeros(aux_struct),
        )

    def update_fn(
        updates, state, params=None, *, value_fn=None, outputs_fn=None, **extra_args
    ):
        value_fn = check_call(params, value_fn, extra_args)
        check_keywords([value_fn, *outputs_in_use(curvature, outputs_fn)], extra_args)
        if extra_args:
            way.check_closure()
        dtype = solve_dtype(params)
        next_key, sample_key = _split(state.key)
        memory = directions.advance(state.directions_state, params)
        vectors = directions.draw(sample_key, params, updates, memory)
        loss = scalar_loss(value_fn, extra_args, has_aux)
        point, moved, whole = params, vectors, loss
        if curvature == "gauss_newton":
            outputs = outputs_of(outputs_fn, extra_args)
            point, moved = directional_derivatives(outputs, (params,), (vectors,))
            whole = lambda params: loss(outputs(params))
        model, aux = quadratic_model(
            loss,
            (point,),
            (moved,),
            plan=way,
            has_aux=True,
        )
        model = jax.tree.map(lambda x: x.astype(dtype), model)
        actual = state.actual_reduction
        if not solver.search.looks_ahead:
            actual = jnp.where(state.steps > 0, state.model.value - model.value, 0)
        last = Outcome(state.model.value, state.predicted_reduction, actual)
        coefficients, solver_state = solver.solve(
            model, gram(vectors, dtype, after=model.value), state.solver_state, last
        )
        predicted = predicted_reduction(model, coefficients)
        accepted = jnp.any(coefficients != 0)
        step = combination(coefficients, vectors, dtype)
        if solver.search.looks_ahead:
            ahead, _ = whole(jax.tree.map(lambda p, s: p - s, params, step))
            actual = model.value - ahead.astype(dtype)
            outcome = Outcome(model.value, predicted, actual)
            taken, solver_state = solver.judge(outcome, solver_state)
            accepted &= taken
            step = jax.tree.map(lambda s: jnp.where(accepted, s, 0), step)
        return step, ScaleByHyperplaneState(
            key=next_key,
            model=model,
            coefficients=coefficients,
            predicted_reduction=predicted,
            actual_reduction=actual,
            steps=jnp.asarray(optax.safe_increment(state.steps)),
            accepted=state.accepted + accepted.astype(state.accepted.dtype),
            directions_state=memory,
            solver_state=solver_state,
            aux=aux,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_kind(name: str, value: Any, kind: type, such_as: str) -> None:
    if not isinstance(value, kind):
        hint = " Did you forget to call it?" if callable(value) else ""
        raise TypeError(
            f"{name} must be a {kind.__name__}, such as {such_as}; got {value!r}.{hint}"
        )


def _key_source(
    key: chex.PRNGKey | int | None, directions: Directions
) -> Callable[[PyTree], chex.PRNGKey | None]:
    """A function of the parameters that makes the first key of a state."""
    if not directions.is_random:
        return lambda params: None
    return _OwnKey() if key is None else lambda params: _as_key(key)


class _OwnKey:
    """The first key of an optimiser that was given none: that of seed 0, if it can be.

    Two links of a chain know nothing of each other, and with one key for both they
    would look along the same directions. What tells them apart is that one link is
    initialised on the very parameters on which others were initialised after it was
    made. It is then numbered by how many those were, once and for all. An optimiser
    that is made and initialised again has the same key again.
    """

    clock: ClassVar[Iterator[int]] = itertools.count()
    # Of the parameters that were last initialised on, a leaf and when each link was.
    recent: ClassVar[deque[tuple[Callable[[], Any], list[int]]]] = deque(maxlen=8)

    def __init__(self):
        self.made = next(self.clock)
        self.number: int | None = None

    def __call__(self, params: PyTree) -> chex.PRNGKey:
        if self.number is None:
            self.number = self._others(next(iter(jax.tree.leaves(params)), None))
        first = jax.random.key(0)
        return jax.random.fold_in(first, self.number) if self.number else first

    def _others(self, leaf: Any) -> int:
        """How many links were initialised on these parameters since this was made."""
        times = next((times for known, times in self.recent if known() is leaf), None)
        if times is None:
            times = []
            self.recent.append((_weakly(leaf), times))
        others = sum(time > self.made for time in times)
        times.append(next(self.clock))
        return others


def _weakly(leaf: Any) -> Callable[[], Any]:
    """A reference that does not keep an array or a tracer alive."""
    try:
        return weakref.ref(leaf)
    except TypeError:  # a number, which is small
        return lambda: leaf


def _split(key: chex.PRNGKey | None) -> tuple[Any, Any]:
    """The key of the steps that follow, and that of this one."""
    if key is None:
        return None, None
    following, this = jax.random.split(key)
    return following, this


def _as_key(key: chex.PRNGKey | int) -> chex.PRNGKey:
    """A copy of a typed or a legacy key, or the typed key of a seed.

    A copy, because a training loop may donate the state, and with it the user's key.
    """
    if isinstance(key, (jax.Array, np.ndarray)) and jnp.ndim(key) == 1:
        check_key(key)  # a legacy key
        expected = jax.random.key_data(jax.random.key(0)).shape
        if key.shape != expected:
            raise TypeError(
                "a legacy key of the default generator has shape "
                f"{list(expected)}; got {list(key.shape)}. For another generator write "
                "jax.random.key(seed, impl=...)."
            )
        return jax.random.clone(jnp.asarray(key))
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        check_key(key)
        return jax.random.clone(key)
    return jax.random.key(key)


def _zeros(struct: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), struct)
