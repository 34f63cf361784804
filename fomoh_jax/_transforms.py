"""Gradient transformations that make their own gradients, by forward passes."""

import functools
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fomoh_jax import plans
from fomoh_jax._activations import forward_value_and_grad
from fomoh_jax._activations.estimate import check_blocks
from fomoh_jax._activations.partition import Blocks
from fomoh_jax._hyperdual import QuadraticModel, directional_derivatives
from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax._hyperdual.plans.auto import chosen
from fomoh_jax._hyperplane_step import (
    Hyperplane,
    ScaleByHyperplaneState,
    by_model,
    either,
    without_model,
)
from fomoh_jax._keys import key_source, split
from fomoh_jax._refusals import check_kind
from fomoh_jax._span import combination
from fomoh_jax._value_fn import (
    batch_loss,
    loss_of_one,
    outputs_of,
    solve_dtype,
    whole_loss,
)
from fomoh_jax.directions import Directions
from fomoh_jax.solvers import Solver, newton


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


class ScaleByActivityGradientState(NamedTuple):
    """State of :func:`scale_by_activity_gradient`.

    Attributes:
      key: PRNG key of the next step's perturbations.
      value: mean loss of the last batch; 0 before the first.
      aux: what ``value_fn`` returned beside it for each example, stacked, with
        ``has_aux``; otherwise ``None``.
    """

    key: Any
    value: Float[Array, ""]
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

    check_kind("directions", directions, Directions, "directions.gaussian(1)")
    first_key = key_source(key) if directions.is_random else lambda params: None

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
        loss = whole_loss(params, value_fn, extra_args, has_aux)
        dtype = solve_dtype(params)
        next_key, sample_key = split(state.key)
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


def scale_by_activity_gradient(
    *,
    blocks: Blocks = None,
    probes: int = 1,
    key: chex.PRNGKey | int | None = None,
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the updates by a forward gradient by perturbed activations.

    .. math:: g_{\theta_l} = \frac1B \sum_b
      \Big(\frac{\partial f_l}{\partial \theta_l}\Big)^{\!\top} d_b\, u_{l,b}

    the unbiased estimate of :func:`fomoh_jax.forward_value_and_grad`, in which blocks
    of the model are differentiated one by one. All of optax can follow, as it would
    follow ``jax.grad``.

    Args:
      blocks, probes: as in :func:`fomoh_jax.forward_value_and_grad`.
      key: PRNG key, typed or legacy, or seed of the perturbations; by default as in
        :func:`fomoh_jax.scale_by_forward_gradient`.
      has_aux: whether ``value_fn`` returns ``(value, aux)``. The aux of all examples,
        stacked, is then in the state.
      aux_struct: with ``has_aux``, the structure, shapes and dtypes of the stacked aux
        (arrays or ``jax.ShapeDtypeStruct``). The first state then holds zeros like it,
        so that the state keeps its structure, as ``jax.lax.scan`` demands. Without it
        the first state's aux is ``None``.

    Returns:
      A gradient transformation whose ``update`` takes the loss of one example,
      ``value_fn(params, example)``, and the examples as ``batch``, whose leaves are
      ``[B, ...]``; further arguments of ``value_fn``, the same for all examples, by
      keyword. The updates handed in may be ``None``. If anything is not finite, the
      gradient is zero.

    Raises:
      ValueError, TypeError: if ``blocks`` or ``probes`` is out of range; from ``init``
        and ``update``, as :func:`fomoh_jax.forward_value_and_grad`, and for a missing
        ``params``, ``value_fn`` or ``batch``, or keyword arguments that are not taken.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fomoh_jax
      >>> def loss_of_one(params, example):
      ...   x, y = example
      ...   hidden = jnp.tanh(x @ params["in"])
      ...   return (hidden @ params["out"] - y) ** 2
      >>> params = {"in": jnp.eye(3), "out": jnp.ones(3)}
      >>> batch = jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
      >>> tx = optax.chain(fomoh_jax.scale_by_activity_gradient(), optax.adam(1e-3))
      >>> state = tx.init(params)
      >>> step, state = tx.update(
      ...   None, state, params, value_fn=loss_of_one, batch=batch
      ... )
      >>> print(jax.tree.map(jnp.shape, step), f"{state[0].value:.3f}")
      {'in': (3, 3), 'out': (3,)} 2.200

    References:
      Ren et al., *Scaling Forward Gradient With Local Losses*, 2023, arXiv:2210.03310.
    """
    check_blocks(blocks)
    probes = check_size("probes", probes)
    first_key = key_source(key)

    def init_fn(params):
        value = jnp.zeros((), solve_dtype(params))
        return ScaleByActivityGradientState(
            first_key(params), value, _zeros(aux_struct)
        )

    def update_fn(
        updates, state, params=None, *, value_fn=None, batch=None, **extra_args
    ):
        del updates
        of_one = loss_of_one(params, value_fn, batch, extra_args)
        next_key, own_key = split(state.key)
        estimate = forward_value_and_grad(
            of_one, blocks=blocks, probes=probes, has_aux=has_aux
        )
        value, gradient = estimate(params, batch, own_key)
        value, aux = value if has_aux else (value, None)
        value = value.astype(solve_dtype(params))
        return gradient, ScaleByActivityGradientState(next_key, value, aux)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_hyperplane(
    directions: Directions,
    solver: Solver | None = None,
    *,
    key: chex.PRNGKey | int | None = None,
    curvature: Literal["hessian", "gauss_newton"] = "hessian",
    plan: plans.Plan | Literal["auto"] = "auto",
    per_example: bool = False,
    parts: int = 1,
    every: int = 1,
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
        forward pass, since an optimiser should take every loss, in memory that does not
        grow with its depth. Where ``value_fn`` takes more than the parameters,
        ``plans.split(mesh_axis)`` needs a mesh whose axes are all of
        ``AxisType.Auto``. (A batch that is sharded needs no plan.)
      per_example: whether ``value_fn(params, example)`` is the loss of one example, as
        :func:`fomoh_jax.scale_by_activity_gradient` takes it. The loss is then its mean
        over the examples in ``batch``, whose leaves are ``[B, ...]``.
      parts: with ``per_example``, the model is computed in so many parts of the batch,
        one after the other, which takes less memory; a divisor of ``B``.
      every: a model is computed at each ``every``-th step, beginning with the first.
        The steps in between apply the coefficients of the last model to their own
        directions, without evaluating the loss, so directions must have the same
        meaning at each step, as ``directions.incoming()`` behind
        ``optax.scale_by_adam()`` has. Along no direction do they go further than the
        step with the model did. If ``update`` is given ``grad``, the gradient or an
        estimate of it, they leave out the directions along which they would go uphill
        by it. If the last model was not finite, they are zero. (Under ``jax.vmap``
        every step takes the time of a model.)
      has_aux: whether ``value_fn`` returns ``(value, aux)``. The aux of the evaluated
        point, stacked if it is of each example, is then in the state.
      aux_struct: with ``has_aux``, the structure, shapes and dtypes of the aux (arrays
        or ``jax.ShapeDtypeStruct``). The first state then holds zeros like it, so that
        the state keeps its structure, as ``jax.lax.scan`` demands. Without it the
        first state's aux is ``None``.

    Returns:
      A gradient transformation whose ``update`` takes ``value_fn`` and, by keyword, its
      further arguments, and with ``every`` also ``grad``, like the parameters. The
      updates handed in may be ``None``. A non-finite loss gives a zero step.

    Raises:
      TypeError: if ``directions``, ``solver`` or ``plan`` is not what its name says; if
        ``parts`` or ``every`` is no Python integer.
      ValueError: if ``curvature`` is neither of the two, or is ``"gauss_newton"`` with
        ``per_example``; if ``parts`` is less than 1, or more without ``per_example``;
        if ``every`` is less than 1, or more and directions are random.
      ValueError, TypeError: from ``init`` and ``update``, for parameters that are not
        real floating-point numbers, a missing ``params`` or ``value_fn``, a loss that
        is no real scalar, a ``grad`` unlike the parameters, or keyword arguments that
        it does not take.

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
    check_kind("directions", directions, Directions, "directions.gaussian(8)")
    check_kind("solver", solver, Solver, "solvers.newton()")
    every = check_size("every", every)
    parts = check_size("parts", parts)
    _check_options(directions, curvature, per_example, parts, every)
    way = plans.forward() if plan == "auto" else chosen(plan)
    first_key = key_source(key) if directions.is_random else lambda params: None

    def init_fn(params):
        dtype = solve_dtype(params)
        k = directions.count(params)
        # Each array is made anew: a buffer that is there twice cannot be donated.
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        return ScaleByHyperplaneState(
            key=first_key(params),
            model=QuadraticModel(zeros(), zeros(k), zeros(k, k)),
            coefficients=zeros(k),
            lengths=zeros(k) if every > 1 else (),
            predicted_reduction=zeros(),
            actual_reduction=zeros(),
            steps=jnp.zeros((), jnp.int32),
            accepted=jnp.zeros((), jnp.int32),
            directions_state=directions.init(params),
            solver_state=jax.tree.map(jnp.array, solver.init(k)),
            aux=_zeros(aux_struct),
        )

    def update_fn(
        updates, state, params=None, *, value_fn=None, outputs_fn=None, **extra_args
    ):
        gradient = extra_args.pop("grad", None) if every > 1 else None
        outputs = outputs_of(curvature, outputs_fn, extra_args)
        if per_example:
            loss = batch_loss(params, value_fn, extra_args, has_aux, parts)
        else:
            loss = whole_loss(params, value_fn, extra_args, has_aux, outputs_fn)
        _check_gradient(gradient, params)
        if extra_args:
            way.check_closure()
        next_key, sample_key = split(state.key)
        memory = directions.advance(state.directions_state, params)
        vectors = directions.draw(sample_key, params, updates, memory)

        plane = Hyperplane(params, vectors, loss, outputs, solve_dtype(params))
        with_model = functools.partial(by_model, plane, solver, way, every)
        if every == 1:
            step, state = with_model(state)
        else:
            if has_aux and state.aux is None:  # the first step has a model
                _, after = jax.eval_shape(with_model, state)
                state = state._replace(aux=_zeros(after.aux))
            without = functools.partial(without_model, plane, gradient)
            step, state = either(state.steps % every == 0, (with_model, without), state)
        accepted = jnp.any(state.coefficients != 0)
        return step, state._replace(
            key=next_key,
            steps=jnp.asarray(optax.safe_increment(state.steps)),
            accepted=state.accepted + accepted.astype(state.accepted.dtype),
            directions_state=memory,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_options(
    directions: Directions, curvature: str, per_example: bool, parts: int, every: int
) -> None:
    """Refuse options of :func:`scale_by_hyperplane` that exclude each other."""
    if curvature not in ("hessian", "gauss_newton"):
        raise ValueError(
            f'curvature must be "hessian" or "gauss_newton"; got {curvature!r}.'
        )
    if per_example and curvature == "gauss_newton":
        raise ValueError(
            'curvature="gauss_newton" takes the outputs of all examples at once; leave '
            "per_example out."
        )
    if parts > 1 and not per_example:
        raise ValueError(
            "parts are of a batch of examples: set per_example=True and let value_fn "
            f"be the loss of one of them, or leave parts out; got {parts}."
        )
    if every > 1 and directions.is_random:
        raise ValueError(
            "every must be 1 for random directions, along which the coefficients of "
            f"other steps mean nothing; got {every}."
        )


def _check_gradient(gradient: PyTree, params: PyTree) -> None:
    """Refuse a gradient that is not like the parameters."""
    kind = lambda t: (jax.tree.structure(t), [jnp.shape(x) for x in jax.tree.leaves(t)])
    if gradient is not None and kind(gradient) != kind(params):
        raise ValueError(
            f"grad must be like the parameters, {jax.tree.map(jnp.shape, params)}; got "
            f"{jax.tree.map(jnp.shape, gradient)}."
        )


def _zeros(struct: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), struct)
