"""Gradient transformations that make their own gradients, by forward passes."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fomoh_jax.directions import Directions
from fomoh_jax.hyperdual import (
    QuadraticModel,
    directional_derivatives,
    quadratic_model,
)
from fomoh_jax.hyperdual.active import as_active, is_active
from fomoh_jax.hyperdual.arguments import check_size, signature
from fomoh_jax.solvers import Solver, newton


class ScaleByForwardGradientState(NamedTuple):
    """State of :func:`scale_by_forward_gradient`.

    Attributes:
      key: PRNG key of the next step's directions.
      value: loss at the last evaluated point; NaN before the first.
      slope: ``[k]``, its directional derivatives there.
      aux: what ``value_fn`` returned beside it, with ``has_aux``; otherwise ``None``.
    """

    key: chex.PRNGKey
    value: jax.Array
    slope: jax.Array
    aux: Any


class ScaleByHyperplaneState(NamedTuple):
    """State of :func:`scale_by_hyperplane`.

    Attributes:
      key: PRNG key of the next step's directions.
      model: value, slope ``[k]`` and curvature ``[k, k]`` of the last step; NaN before
        the first.
      coefficients: ``[k]``, the last step along each direction, before any learning
        rate.
      solver_state: the solver's.
      aux: what ``value_fn`` returned beside the value, with ``has_aux``; otherwise
        ``None``.
    """

    key: chex.PRNGKey
    model: QuadraticModel
    coefficients: jax.Array
    solver_state: Any
    aux: Any


def scale_by_forward_gradient(
    directions: Directions,
    *,
    key: chex.PRNGKey | int = 0,
    has_aux: bool = False,
    aux_struct: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the updates by a forward gradient.

    .. math:: g = \frac1k \sum_i (\nabla f \cdot v_i)\, v_i

    an unbiased estimate of the gradient if :math:`E[v v^\top] = I`, from one forward
    pass that carries ``k`` tangents. (Of ``directions.layerwise()`` each ``v`` moves
    one of :math:`L` layers, so that it is an estimate of :math:`\nabla f / L`.)

    Args:
      directions: where to look, such as ``directions.gaussian(1)``.
      key: PRNG key or seed of the directions.
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
      ValueError, TypeError: from ``init`` and ``update``, for parameters that are not
        real floating-point numbers, a missing ``params`` or ``value_fn``, or a loss
        that is no real scalar.

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

    def init_fn(params):
        dtype = _solve_dtype(params)
        return ScaleByForwardGradientState(
            key=_as_key(key),
            value=jnp.full((), jnp.nan, dtype),
            slope=jnp.full((directions.count(params),), jnp.nan, dtype),
            aux=_zeros(aux_struct),
        )

    def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
        loss = _scalar_loss(params, value_fn, extra_args, has_aux)
        dtype = _solve_dtype(params)
        next_key, sample_key = jax.random.split(state.key)
        vectors = directions.sample(sample_key, params, updates)
        (value, slope), aux = directional_derivatives(
            loss, (params,), (vectors,), has_aux=True
        )
        value, slope = value.astype(dtype), slope.astype(dtype)
        weights = jnp.where(jnp.isfinite(value), slope / len(slope), 0)
        step = _combination(weights, vectors, dtype)
        return step, ScaleByForwardGradientState(next_key, value, slope, aux)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_hyperplane(
    directions: Directions,
    solver: Solver | None = None,
    *,
    key: chex.PRNGKey | int = 0,
    chunk_size: int | None = None,
    has_aux: bool = False,
    aux_struct: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the updates by the step to the minimum of the model on a hyperplane.

    .. math:: g = V \kappa, \qquad \kappa = (V^\top H V)^{-1}\, V^\top \nabla f

    for directions :math:`V = [v_1 \dots v_k]`, with the system solved as ``solver``
    says. Value, slopes and curvature come from one forward pass. Like a gradient, ``g``
    points uphill: a step of learning rate 1 goes to the minimum.

    Args:
      directions: what spans the hyperplane, such as ``directions.gaussian(8)``.
      solver: how the k×k system is solved; ``solvers.newton()`` by default. It is
        solved in float32, or in the parameters' precision if that is higher.
      key: PRNG key or seed of the directions.
      chunk_size: bound on memory, as in :func:`fomoh_jax.quadratic_model`.
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
      ValueError, TypeError: from ``init`` and ``update``, for parameters that are not
        real floating-point numbers, a missing ``params`` or ``value_fn``, or a loss
        that is no real scalar.

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
    if chunk_size is not None:
        chunk_size = check_size("chunk_size", chunk_size)

    def init_fn(params):
        dtype = _solve_dtype(params)
        k = directions.count(params)
        model = QuadraticModel(
            *(jnp.full(shape, jnp.nan, dtype) for shape in ((), (k,), (k, k)))
        )
        return ScaleByHyperplaneState(
            key=_as_key(key),
            model=model,
            coefficients=jnp.zeros((k,), dtype),
            solver_state=solver.init(k),
            aux=_zeros(aux_struct),
        )

    def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
        loss = _scalar_loss(params, value_fn, extra_args, has_aux)
        dtype = _solve_dtype(params)
        next_key, sample_key = jax.random.split(state.key)
        vectors = directions.sample(sample_key, params, updates)
        model, aux = quadratic_model(
            loss, (params,), (vectors,), chunk_size=chunk_size, has_aux=True
        )
        model = jax.tree.map(lambda x: x.astype(dtype), model)
        coefficients, solver_state = solver.solve(
            model, _gram(vectors, dtype), state.solver_state
        )
        step = _combination(coefficients, vectors, dtype)
        return step, ScaleByHyperplaneState(
            next_key, model, coefficients, solver_state, aux
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scalar_loss(
    params: Any, value_fn: Callable | None, extra_args: dict[str, Any], has_aux: bool
) -> Callable:
    """``value_fn`` as a function of the parameters that returns ``(value, aux)``."""
    if params is None:
        raise ValueError(
            "update needs the current params to evaluate the loss at: call "
            "tx.update(updates, state, params, value_fn=...)."
        )
    if value_fn is None:
        raise ValueError(
            "update needs the loss as value_fn, as optax's line searches do: call "
            "tx.update(updates, state, params, value_fn=loss, batch=batch), with "
            "everything that the loss takes beside params by keyword."
        )
    keywords = _keywords(value_fn, extra_args)

    def loss(params):
        out = value_fn(params, **keywords)
        if not has_aux:
            _check_scalar(out, " If it returns (value, aux), set has_aux=True.")
            return out, None
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                "with has_aux=True, value_fn must return a pair (value, aux); got "
                f"{jax.tree.structure(out)}."
            )
        _check_scalar(out[0], "")
        return out

    return loss


def _keywords(value_fn: Callable, extra_args: dict[str, Any]) -> dict[str, Any]:
    """Those of a chain's extra arguments that ``value_fn`` has a parameter for."""
    own = signature(value_fn)
    if own is None:  # some builtins do not say
        return extra_args
    if any(p.kind is p.VAR_KEYWORD for p in own.parameters.values()):
        own = inspect.signature(value_fn)  # a wrapper that passes everything on
    parameters = list(own.parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return extra_args
    names = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    return {name: extra_args[name] for name in names if name in extra_args}


def _check_scalar(value: Any, hint: str) -> None:
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        raise TypeError(
            "value_fn must return a scalar array; got a tree of structure "
            f"{jax.tree.structure(value)}.{hint}"
        )
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "value_fn must return a real floating-point scalar; got shape "
            f"{list(shape)} and dtype {dtype}."
        )


def _solve_dtype(params: Any) -> Any:
    """At least float32, and the precision of the parameters if that is higher."""
    if not jax.tree.leaves(params):
        raise ValueError(f"params holds no array to optimise; got {params!r}.")
    dtype = jnp.dtype(jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    ):
        name = f"params{jax.tree_util.keystr(path)}"
        if isinstance(leaf, optax.MaskedNode):
            raise TypeError(
                f"{name} is masked out, but the loss can only be evaluated at all of "
                "the parameters. Put optax.masked around the other links of the chain."
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                "parameters must be real floating-point arrays; "
                f"{name} has dtype {jnp.result_type(leaf)}. Hand integers and complex "
                "numbers to value_fn by keyword instead."
            )
        dtype = jnp.promote_types(dtype, jnp.result_type(leaf))
    return dtype


def _gram(vectors: Any, dtype: Any) -> jax.Array:
    """``VᵀV``, accumulated in ``dtype``."""

    def of_leaf(leaf):
        v = as_active(leaf)
        flat = v.array.reshape(len(v.array), -1)
        block = jnp.einsum("ia,ja->ij", flat, flat, preferred_element_type=dtype)
        if len(v.present) == v.k:
            return block
        places = np.ix_(v.present, v.present)
        return jnp.zeros((v.k, v.k), dtype).at[places].set(block)

    leaves = jax.tree.leaves(vectors, is_leaf=is_active)
    return jnp.sum(jnp.stack(list(map(of_leaf, leaves))), axis=0)


def _combination(coefficients: jax.Array, vectors: Any, dtype: Any) -> Any:
    """``Σ_i coefficients_i v_i`` in each leaf's dtype; zero if that is not finite."""

    def of_leaf(leaf):
        v = as_active(leaf)
        own = coefficients
        if len(v.present) < v.k:
            own = coefficients[np.array(v.present, int)]
        total = jnp.einsum("i,i...->...", own, v.array, preferred_element_type=dtype)
        return total.astype(v.array.dtype)

    step = jax.tree.map(of_leaf, vectors, is_leaf=is_active)
    finite = jnp.all(
        jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(step)])
    )
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), step)


def _as_key(key: chex.PRNGKey | int) -> chex.PRNGKey:
    """A typed key, from one, from a legacy key, or from a seed."""
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        if key.ndim == 1:  # a legacy key: as many words as its implementation has
            return jax.random.wrap_key_data(key)
    return jax.random.key(key)


def _zeros(struct: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), struct)
