"""A step on a hyperplane: by a model there, or by the coefficients of the last one."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

from fomoh_jax._hyperdual import (
    QuadraticModel,
    directional_derivatives,
    quadratic_model,
)
from fomoh_jax._hyperdual.mesh_axes import in_shard_map, varies_along, varying_alike
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._span import combination, gram, slopes
from fomoh_jax.solvers import Outcome, Solver, SolverState


class ScaleByHyperplaneState(NamedTuple):
    """State of :func:`scale_by_hyperplane`.

    Attributes:
      key: PRNG key of the next step's directions; ``None`` if they are not random.
      model: value, slope ``[k]`` and curvature ``[k, k]`` of the last step; zeros
        before the first.
      coefficients: ``[k]``, the last step with a model along each direction, before
        any learning rate; zero if the search refused it.
      lengths: ``[k]``, ``|v_i|`` of the directions of the last model; ``()`` if each
        step has a model.
      predicted_reduction: by how much the model falls on the last step, taken whole.
      actual_reduction: by how much the loss fell: on the last step and the same batch,
        where the search looks ahead (to a loss that is not finite: minus
        ``|value| + |predicted_reduction|``); otherwise from the last model to this one,
        on the steps between the two and another batch. 0 before it is known. After a
        model that was not finite, each of the reductions may be 0 or NaN.
      steps: how many updates were made, int32.
      accepted: how many updates, int32, had a finite loss at the last model and a step
        there that is not zero and that the search did not refuse. With ``every``, steps
        between models count as the step with the model did.
      directions_state: that of the source of directions.
      solver_state: that of the descent and of the search, such as the step size or
        the radius.
      aux: what ``value_fn`` returned beside the value, with ``has_aux``; otherwise
        ``None``.
    """

    key: Any
    model: QuadraticModel
    coefficients: Float[Array, " k"]
    lengths: Float[Array, " k"] | tuple[()]
    predicted_reduction: Float[Array, ""]
    actual_reduction: Float[Array, ""]
    steps: Int[Array, ""]
    accepted: Int[Array, ""]
    directions_state: PyTree
    solver_state: SolverState
    aux: PyTree


@dataclasses.dataclass(frozen=True)
class Hyperplane:
    """A point, directions from it, and the loss there.

    Attributes:
      params: the point.
      vectors: the directions, each leaf ``[k, ...]`` or deferred.
      loss: ``loss(params) -> (value, aux)``, or with ``outputs`` of these.
      outputs: the inner function of a loss in two parts, for the curvature of Gauss and
        Newton; or ``None``.
      dtype: the precision of models and of coefficients.
    """

    params: PyTree
    vectors: PyTree
    loss: Callable[[PyTree], tuple[Array, PyTree]]
    outputs: Callable[[PyTree], PyTree] | None
    dtype: DTypeLike

    def model(self, plan: Plan) -> tuple[QuadraticModel, PyTree]:
        """The quadratic model of the loss along the directions, and its aux."""
        point, along = self.params, self.vectors
        if self.outputs is not None:
            point, along = directional_derivatives(self.outputs, (point,), (along,))
        model, aux = quadratic_model(
            self.loss, (point,), (along,), plan=plan, has_aux=True
        )
        return jax.tree.map(lambda x: x.astype(self.dtype), model), aux

    def along(self, coefficients: Float[Array, " k"]) -> PyTree[Array]:
        """``Vκ``, like the parameters."""
        return combination(coefficients, self.vectors, self.dtype)

    def fall(
        self, value: Float[Array, ""], coefficients: Float[Array, " k"]
    ) -> Float[Array, ""]:
        """The fall of the loss from its value here on a step ``-Vκ``."""
        ahead = jax.tree.map(jnp.subtract, self.params, self.along(coefficients))
        if self.outputs is not None:
            ahead = self.outputs(ahead)
        return value - self.loss(ahead)[0].astype(self.dtype)

    def gram(self, after: Array | None = None) -> Float[Array, "k k"]:
        """``VᵀV``; vectors that are deferred are made once ``after`` is known."""
        return gram(self.vectors, self.dtype, after=after)


def by_model(
    plane: Hyperplane,
    solver: Solver,
    plan: Plan,
    every: int,
    state: ScaleByHyperplaneState,
) -> tuple[PyTree[Array], ScaleByHyperplaneState]:
    """A step to the minimum of the model here, as far as the solver goes."""
    model, aux = plane.model(plan)
    metric = plane.gram(after=model.value)
    attempt, solver_state = solver.attempt(
        model,
        metric,
        state.solver_state,
        _last_outcome(solver, state, model.value, every),
        lambda coefficients: plane.fall(model.value, coefficients),
    )
    if_taken = lambda x: jnp.where(attempt.taken, x, 0)
    step = jax.tree.map(if_taken, plane.along(attempt.coefficients))
    return step, state._replace(
        model=model,
        coefficients=if_taken(attempt.coefficients),
        lengths=jnp.sqrt(jnp.diagonal(metric)) if every > 1 else (),
        predicted_reduction=attempt.outcome.predicted,
        actual_reduction=attempt.outcome.actual,
        solver_state=solver_state,
        aux=aux,
    )


def _last_outcome(
    solver: Solver,
    state: ScaleByHyperplaneState,
    value: Float[Array, ""],
    every: int,
) -> Outcome:
    """The outcome of the last step with a model, or of all since, by the loss here."""
    before, predicted = state.model.value, state.predicted_reduction
    if solver.search.looks_ahead:
        return Outcome(before, predicted, state.actual_reduction)
    actual = jnp.where(state.steps > 0, before - value, 0)
    return Outcome(before, every * predicted, actual)


def without_model(
    plane: Hyperplane, gradient: PyTree[Array] | None, state: ScaleByHyperplaneState
) -> tuple[PyTree[Array], ScaleByHyperplaneState]:
    """A step with the coefficients of the last model, along each direction as long.

    It goes along those directions alone that lead downhill, if the gradient is known.
    """
    before, lengths = state.lengths, jnp.sqrt(jnp.diagonal(plane.gram()))
    assert not isinstance(before, tuple)  # some steps have no model
    shortened = jnp.where(lengths > before, before / lengths, 1)
    coefficients = shortened * state.coefficients
    if gradient is not None:
        slope = slopes(gradient, plane.vectors, plane.dtype)
        coefficients = jnp.where(coefficients * slope > 0, coefficients, 0)
    return plane.along(coefficients), state


# A kind of step: ``step(state) -> (step, state)``.
Kind = Callable[[ScaleByHyperplaneState], tuple[PyTree, ScaleByHyperplaneState]]


def either(
    first: Bool[Array, ""], kinds: Sequence[Kind], state: ScaleByHyperplaneState
) -> tuple[PyTree, ScaleByHyperplaneState]:
    """One of two kinds of steps, also inside a ``jax.shard_map``."""
    if in_shard_map():  # both branches of a cond must vary alike
        axes = _varying_after(kinds, state)
        state = varying_alike(state, axes)
        kinds = [
            lambda state, kind=kind: varying_alike(kind(state), axes) for kind in kinds
        ]
    return jax.lax.cond(first, *kinds, state)


def _varying_after(
    kinds: Sequence[Kind], state: ScaleByHyperplaneState
) -> frozenset[str]:
    """The axes of a mesh along which the state varies after a step of any kind."""
    before, axes = None, varies_along(state)
    while axes != before:
        before = axes
        for kind in kinds:
            axes |= varies_along(jax.eval_shape(kind, varying_alike(state, axes)))
    return axes
