"""Solvers: a descent, which says where, and a search, which says how far."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from fomoh_jax._hyperdual import QuadraticModel
from fomoh_jax._refusals import check_kind


class Outcome(NamedTuple):
    """The outcome of a step, whether or not it was taken.

    All numbers are finite. They are 0 before the first step, and after a model that was
    not finite. Where a search looks ahead to a loss that is not finite, the loss counts
    as larger by ``|value| + |predicted|``.

    Attributes:
      value: the loss that the step started from.
      predicted: by how much the model fell on the step.
      actual: by how much the loss fell.
    """

    value: Float[Array, ""]
    predicted: Float[Array, ""]
    actual: Float[Array, ""]


class Step(NamedTuple):
    """A step ``-Vκ`` on the hyperplane.

    Attributes:
      coefficients: ``κ``.
      length: ``|Vκ|``, in the units of the parameters.
      size: what was used of the size that was asked for: less than all of it where a
        larger one would lead no further.
    """

    coefficients: Float[Array, " k"]
    length: Float[Array, ""]
    size: Float[Array, ""]


class Attempt(NamedTuple):
    """A step ``-Vκ``, and what is known of it before it is taken.

    Attributes:
      coefficients: ``κ``.
      taken: whether to take the step.
      outcome: of this step, if the search looks ahead; otherwise the actual reduction
        is that of the step before.
    """

    coefficients: Float[Array, " k"]
    taken: Bool[Array, ""]
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Descent:
    """A rule that chooses a step, given its size.

    Attributes:
      step: ``step(model, gram, size, last, state) -> (Step, state)``. A larger size
        leads as far or further; where the model has curvature, a size that goes to zero
        leads to no step. Size 1 is the descent's own step. ``last`` is the
        :class:`Outcome` of the step before. The Gram matrix is singular where a
        direction depends on others, or is zero, as the first of
        :func:`fomoh_jax.directions.history` are.
      init: ``init(k) -> state``, the state before the first step along ``k``
        directions, of a descent that remembers.
    """

    step: Callable[
        [QuadraticModel, jax.Array, jax.Array, Outcome, PyTree], tuple[Step, PyTree]
    ]
    init: Callable[[int], PyTree] = lambda k: ()


@dataclasses.dataclass(frozen=True)
class Search:
    """A rule that chooses the size of a step, given the outcomes of those before it.

    Attributes:
      size: ``size(state) -> size``, of the next step.
      learn: ``learn(outcome, state) -> (accepted, state)``: what the outcome of a step
        tells, and whether the step is to be taken. It is called once for each step;
        before the first step, too, unless the search looks ahead.
      limit: ``limit(step, state) -> (scale, state)``: the step about to be taken, and
        by what it is to be scaled first.
      init: ``init() -> state``.
      looks_ahead: whether the outcome of a step is measured before it is taken, by the
        loss of the same batch where the step leads, which is one more evaluation.
        Otherwise every step is taken, and the outcome follows from the value of the
        next model, on the next batch.
      fork: ``fork(state) -> states``, for a search that looks ahead: several states,
        stacked, of different sizes, of which the first is ``state`` itself. A step is
        tried from each of them, at an evaluation of the loss each, and the search goes
        on from the one whose step leads to the least loss, or the first of those whose
        steps do so to rounding; from the first of all, if none lowers it. (The descent
        is mapped over them by ``jax.vmap``.) ``None`` tries one.
    """

    size: Callable[[PyTree], Float[Array, ""] | float]
    learn: Callable[[Outcome, PyTree], tuple[Bool[Array, ""] | bool, PyTree]] = (
        lambda last, state: (True, state)
    )
    limit: Callable[[Step, PyTree], tuple[Float[Array, ""] | float, PyTree]] = (
        lambda step, state: (1.0, state)
    )
    init: Callable[[], PyTree] = lambda: ()
    looks_ahead: bool = False
    fork: Callable[[PyTree], PyTree] | None = None

    def __post_init__(self):
        if self.fork is not None and not self.looks_ahead:
            raise ValueError(
                "fork is for a search that looks ahead: set looks_ahead=True, or leave "
                "fork out."
            )


class SolverState(NamedTuple):
    """State of a :class:`Solver`.

    Attributes:
      descent: that of the descent; ``()`` if it has none.
      search: that of the search; ``()`` if it has none.
    """

    descent: PyTree
    search: PyTree


@dataclasses.dataclass(frozen=True)
class Solver:
    """A descent and a search. Any two combine.

    A solver keeps everything finite: if the model, the Gram matrix or the step is not
    finite, the step is zero and the state stays as it was; if a search looks ahead to a
    loss that is not finite, the descent and the search are told that it rose, and the
    step is not taken. Descents and searches need not check for that.

    Attributes:
      descent: which step to take, given its size.
      search: which size, given how the steps before came out.

    Raises:
      TypeError: if one of the two is something else.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> from fomoh_jax.solvers import Solver, descents, searches
      >>> levenberg_marquardt = Solver(descents.damped(2.0), searches.gain_ratio())
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0]), jnp.array([[2.0]]))
      >>> state = levenberg_marquardt.init(1)
      >>> coefficients, _ = levenberg_marquardt.solve(model, jnp.eye(1), state)
      >>> print(coefficients)
      [0.5]
    """

    descent: Descent
    search: Search

    def __post_init__(self):
        check_kind("descent", self.descent, Descent, "newton()")
        check_kind("search", self.search, Search, "constant()")

    def init(self, k: int) -> SolverState:
        """The state before the first step along ``k`` directions."""
        strong = lambda x: jnp.asarray(x, jnp.result_type(x))
        return SolverState(
            jax.tree.map(strong, self.descent.init(k)),
            jax.tree.map(strong, self.search.init()),
        )

    def solve(
        self,
        model: QuadraticModel,
        gram: Float[Array, "k k"],
        state: SolverState,
        last: Outcome | None = None,
    ) -> tuple[Float[Array, " k"], SolverState]:
        """The coefficients ``κ`` of a step ``-Vκ``, and the state after it.

        Args:
          model: value, slope ``[k]`` and curvature ``[k, k]``, of one precision.
          gram: ``VᵀV``, in that precision.
          state: the state after the step before.
          last: the outcome of the step before; ``None`` if there was none.
        """
        dtype = gram.dtype
        finite = _is_finite((model, gram))
        # Nothing below sees what is not finite: a branch not taken spreads it.
        identity = jnp.eye(len(gram), dtype=dtype)
        zero = jnp.zeros((), dtype)
        sound = QuadraticModel(
            jnp.where(finite, model.value, 0),
            jnp.where(finite, model.slope, 0),
            jnp.where(finite, model.curvature, identity),
        )
        gram = jnp.where(finite, gram, identity)
        if last is None:
            last = Outcome(zero, zero, zero)
        known = _is_finite(last)
        last = Outcome(*(jnp.where(known, x, 0).astype(dtype) for x in last))

        descent, search = _in_dtype(dtype, state)
        if not self.search.looks_ahead:
            _, search = self.search.learn(last, search)
        size = jnp.asarray(self.search.size(search), dtype)
        step, descent = self.descent.step(sound, gram, size, last, descent)
        scale, search = self.search.limit(step, search)
        coefficients = scale * step.coefficients

        finite &= _is_finite(coefficients)
        after = _where(finite, SolverState(descent, search), state)
        return jnp.where(finite, coefficients, 0).astype(dtype), after

    def attempt(
        self,
        model: QuadraticModel,
        gram: Float[Array, "k k"],
        state: SolverState,
        last: Outcome,
        fall: Callable[[Float[Array, " k"]], Float[Array, ""]],
    ) -> tuple[Attempt, SolverState]:
        """A step, judged before it is taken if the search looks ahead.

        Args:
          model, gram, state: as for :meth:`solve`.
          last: the outcome of the step before; zeros if there was none.
          fall: ``fall(coefficients)``, by how much the loss of the same batch falls on
            a step. It is called only if the search looks ahead.

        Returns:
          The attempt, and the state after it.
        """
        if self.search.looks_ahead:
            coefficients, after, actual = self._furthest_fall(
                model, gram, state, last, fall
            )
            predicted = predicted_reduction(model, coefficients)
            outcome = Outcome(model.value, predicted, actual)
            taken, after = self.judge(outcome, after)
            outcome = _with_finite_loss(outcome)
        else:
            coefficients, after = self.solve(model, gram, state, last)
            predicted = predicted_reduction(model, coefficients)
            outcome = Outcome(model.value, predicted, last.actual)
            taken = jnp.array(True)
        return Attempt(coefficients, taken, outcome), after

    def judge(
        self, outcome: Outcome, state: SolverState
    ) -> tuple[Bool[Array, ""], SolverState]:
        """Whether to take the step with this outcome, if the search looks ahead."""
        told = _with_finite_loss(outcome)
        # Where there is no finite model, no step was tried, and nothing is learned.
        tried = _is_finite(told)
        told = Outcome(*(jnp.where(tried, x, 0) for x in told))
        search = _in_dtype(told.predicted.dtype, state.search)
        accepted, search = self.search.learn(told, search)
        after = _where(tried, search, state.search)
        taken = accepted & tried & jnp.isfinite(outcome.actual)
        return taken, state._replace(search=after)

    def _furthest_fall(
        self,
        model: QuadraticModel,
        gram: Float[Array, "k k"],
        state: SolverState,
        last: Outcome,
        fall: Callable[[Float[Array, " k"]], Float[Array, ""]],
    ) -> tuple[Float[Array, " k"], SolverState, Float[Array, ""]]:
        """The step on which the loss falls most, if the search forks into several.

        Returns:
          Its coefficients, the state after it, and by how much the loss falls; of the
          first of those that are alike to rounding, and of the first of all, if the
          loss falls on none.
        """
        if self.search.fork is None:
            coefficients, after = self.solve(model, gram, state, last)
            return coefficients, after, fall(coefficients)
        forked = jax.tree.map(
            lambda new, old: jnp.asarray(new, old.dtype),
            self.search.fork(state.search),
            state.search,
        )
        solve = lambda search: self.solve(
            model, gram, state._replace(search=search), last
        )
        tried, states = jax.vmap(solve)(forked)
        # One after the other, in the memory of one.
        falls = jax.lax.map(fall, tried)
        won = jnp.where(jnp.isfinite(falls) & (falls > 0), falls, 0)
        # Sizes that do not bind lead to one step: the first of those is taken, and not
        # the one that rounding prefers.
        noise = 10 * jnp.finfo(falls.dtype).eps * jnp.abs(model.value)
        none = jnp.max(won) <= 0
        best = jnp.argmax((won >= jnp.max(won) - noise) & ((won > 0) | none))
        return jax.tree.map(lambda x: x[best], (tried, states, falls))


def predicted_reduction(
    model: QuadraticModel, coefficients: Float[Array, " k"]
) -> Float[Array, ""]:
    """``κ·s - ½ κᵀ C κ``, by how much the model falls on a step ``-Vκ``."""
    slope, curvature = model.slope, model.curvature
    return coefficients @ slope - coefficients @ curvature @ coefficients / 2


def _with_finite_loss(outcome: Outcome) -> Outcome:
    """The outcome, if the loss after the step is not finite, of one that is larger.

    It is larger by as much as it was, and by as much as the model falls.
    """
    risen = -jnp.abs(outcome.value) - jnp.abs(outcome.predicted)
    actual = jnp.where(jnp.isfinite(outcome.actual), outcome.actual, risen)
    return outcome._replace(actual=actual)


def _is_finite(tree: PyTree) -> Bool[Array, ""]:
    finite = jnp.array(True)
    for leaf in jax.tree.leaves(tree):
        finite &= jnp.all(jnp.isfinite(leaf))
    return finite


def _where(finite: Bool[Array, ""], after: PyTree, before: PyTree) -> PyTree:
    """One of two states, in the dtypes of ``before``, as loops demand."""
    return jax.tree.map(
        lambda new, old: jnp.where(finite, new.astype(old.dtype), old), after, before
    )


def _in_dtype(dtype: jnp.dtype, state: PyTree) -> PyTree:
    """The state with its floating-point numbers in the precision of the model."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )
