"""``fomoh_ap``: the estimate by perturbed activations, with an exact step along it.

The step is the minimum of the quadratic model in a plane: along the parameters whose
gradient is exact, and along those whose gradient is estimated.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from fomoh_jax import directions, plans, solvers
from fomoh_jax._activations.block_table import kinds_of_leaves
from fomoh_jax._activations.estimate import read_batch
from fomoh_jax._activations.partition import Blocks
from fomoh_jax._hyperdual import QuadraticModel
from fomoh_jax._hyperdual.mesh_axes import (
    explicit_sharding,
    in_shard_map,
    varying_alike,
)
from fomoh_jax._refusals import check_kind
from fomoh_jax._transforms import (
    ScaleByActivityGradientState,
    ScaleByHyperplaneState,
    scale_by_activity_gradient,
    scale_by_hyperplane,
)
from fomoh_jax._value_fn import loss_of_one, solve_dtype
from fomoh_jax.directions._structured import grouped

# The least worth at which the estimated blocks are taken at every step.
_WORTHWHILE = 0.05
# The estimated blocks are tried again at least once in this many times.
_RARELY = 16
# The worth is an average over so many models, or over all while they are fewer.
_MEMORY = 3

# The model holds six numbers for each of a forward pass. So it is computed in parts of
# the batch; their number is the first of these that divides it.
_PARTS = 4, 3, 2, 1
# Batches of fewer examples are not taken apart.
_MANY = 16

# The number of the direction along which each leaf moves; ``None`` if it stays.
Groups = Sequence[int | None]
GROUPS = {"exact": 0, "estimated": 1, "unused": None}


def fomoh_ap(
    blocks: Blocks = 2,
    probes: int = 1,
    *,
    every: int = 4,
    direction: optax.GradientTransformation | None = None,
    solver: solvers.Solver | None = None,
    plan: plans.Plan | Literal["auto"] = "auto",
    key: chex.PRNGKey | int | None = None,
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FoMoH along perturbed activations, without a learning rate.

    .. math:: \theta \leftarrow \theta - \kappa_1 v_{\text{exact}}
      - \kappa_2 v_{\text{estimated}}, \qquad
      v = \mathrm{ema}\Big(\frac{g}{\sqrt{r\, c^\top / \bar r}}\Big)

    where :math:`g` is the estimate of :func:`fomoh_jax.forward_value_and_grad`, divided
    by its root mean square, of which averages over rows :math:`r` and columns :math:`c`
    are kept, and averaged over steps. The direction is cut in two: the parameters whose
    gradient is exact, those of the last block, and all others. How far to go along
    either, :math:`\kappa`, is the minimum of the quadratic model of the loss in both,
    on the same batch, in the size that ``solvers.self_tuning()`` finds. There is a new
    model at each ``every`` steps; those in between use its :math:`\kappa`.

    The estimate is noise where blocks are large and the batch is small. The model shows
    its worth: how much more it falls along both directions than along the exact one.
    Where that is less than a twentieth, on average over three models, the estimated
    blocks are moved at a proportionally smaller share of the models, at least at one in
    16, and are left unchanged at the others. A batch whose loss is not finite moves
    nothing.

    Memory is that of the largest block, and of one more copy of the parameters: the
    model is computed in four parts of the batch, one after the other, if it divides by
    four (or in three, or two; not where a batch is sharded explicitly). For a network
    of five equal layers the estimate costs 4.0 forward passes and the model 5.1, or 2.0
    at steps that move the last block alone.

    Args:
      blocks: how many blocks at most: more take less memory and make more noise. The
        gradient of the last one is exact, by a reverse pass of that block alone.
        ``None`` takes as many as the model has, and so does a number that is larger; 1
        is backpropagation. See :func:`fomoh_jax.blocks_of`.
      probes: number of perturbations of each example; their estimates are averaged.
      every: a model is computed at each ``every``-th step.
      direction: an optax transformation that makes a direction of the estimate; by
        default ``optax.scale_by_factored_rms`` and ``optax.ema(0.9)``, the formula
        above.
      solver: how far to go, by default ``solvers.self_tuning()``.
      plan: how the model is computed: see :func:`fomoh_jax.scale_by_hyperplane`. Its
        two directions can be split over two devices.
      key, has_aux, aux_struct: as in :func:`fomoh_jax.scale_by_activity_gradient`.

    Returns:
      A gradient transformation whose ``update`` takes the loss of one example,
      ``value_fn(params, example)``, and the examples as ``batch``, whose leaves are
      ``[B, ...]``; further arguments of ``value_fn`` by keyword. Its state is a tuple:
      the states of :func:`fomoh_jax.scale_by_activity_gradient`, of ``direction`` and
      of :func:`fomoh_jax.scale_by_hyperplane`, and what the estimated blocks are worth.
      (Under ``jax.vmap`` every step takes the time of all blocks and of a model.)

    Raises:
      ValueError, TypeError: as :func:`fomoh_jax.scale_by_activity_gradient` and
        :func:`fomoh_jax.scale_by_hyperplane`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fomoh_jax
      >>> def loss_of_one(params, example):
      ...   x, y = example
      ...   hidden = jnp.tanh(x @ params["in"])
      ...   return (hidden @ params["out"] - y) ** 2
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> batch = x, jnp.sin(x[:, 0])
      >>> params = {"in": jax.random.normal(jax.random.key(1), (4, 16)) / 2}
      >>> params["out"] = jnp.zeros(16)
      >>> tx = fomoh_jax.fomoh_ap()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   updates, state = tx.update(
      ...     None, state, params, value_fn=loss_of_one, batch=batch
      ...   )
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> print(bool(state[0].value < 0.02))
      True

    References:
      Ren et al., *Scaling Forward Gradient With Local Losses*, 2023, arXiv:2210.03310;
      Shazeer and Stern, *Adafactor*, 2018, arXiv:1804.04235; Cobb et al., 2024,
      arXiv:2408.10419, section 3 (FoMoH-KD).
    """
    direction = normalised_average() if direction is None else direction
    such_as = "optax.scale_by_adam()"
    check_kind("direction", direction, optax.GradientTransformation, such_as)
    solver = solvers.self_tuning() if solver is None else solver

    def estimate(blocks: Blocks) -> optax.GradientTransformationExtraArgs:
        return scale_by_activity_gradient(
            blocks=blocks,
            probes=probes,
            key=key,
            has_aux=has_aux,
            aux_struct=aux_struct,
        )

    def plane(groups: Groups, parts: int) -> optax.GradientTransformationExtraArgs:
        along = grouped(directions.incoming(), lambda params: groups, lambda params: 2)
        return scale_by_hyperplane(
            along, solver, plan=plan, per_example=True, parts=parts, every=every
        )

    links = _Links(estimate, direction, plane)
    first = estimate(blocks), direction, plane([], 1)

    def init_fn(params):
        one = lambda: jnp.ones((), solve_dtype(params))
        effort = EffortState(one(), jnp.zeros((), jnp.int32), one())
        return *(link.init(params) for link in first), effort

    def update_fn(
        updates, state, params=None, *, value_fn=None, batch=None, **extra_args
    ):
        loss = loss_of_one(params, value_fn, batch, extra_args)
        params = jax.tree.map(jnp.asarray, params)
        if in_shard_map():  # both branches of a cond must vary alike
            state, params, batch = varying_alike((state, params, batch))
        step = _Step(links, updates, params, loss, has_aux, batch)
        kinds, count = kinds_of_leaves(loss, params, batch, blocks, has_aux)
        both = functools.partial(step.taken, [GROUPS[kind] for kind in kinds], count)
        *states, effort = state
        states = _States(*states)
        if {"exact", "estimated"}.issubset(kinds):
            exact = [0 if kind == "exact" else None for kind in kinds]
            last = functools.partial(step.taken, exact, 1)
            takes_both, done = effort.due >= 1, states.plane.steps
            taken, states = jax.lax.cond(takes_both, both, last, states)
            planned = states.plane
            ended = (planned.steps > done) & (planned.steps % every == 0)
            effort = reconsidered(effort, takes_both, planned.model, ended)
        else:
            taken, states = both(states)
        return jax.tree.map(jnp.negative, taken), (*states, effort)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Links(NamedTuple):
    """The links of a step, by what they depend on.

    Attributes:
      estimate: estimates the gradient, by the number of blocks.
      direction: makes a direction of the estimate.
      plane: chooses how far to go, by the groups of the leaves, and by the number of
        parts of the batch in which the model is computed.
    """

    estimate: Callable[[Blocks], optax.GradientTransformationExtraArgs]
    direction: optax.GradientTransformation
    plane: Callable[[Groups, int], optax.GradientTransformationExtraArgs]


class _States(NamedTuple):
    """The states of the links."""

    estimate: ScaleByActivityGradientState
    direction: PyTree
    plane: ScaleByHyperplaneState


@dataclasses.dataclass(frozen=True)
class _Step:
    """The inputs that all steps of an update share, whichever leaves they move."""

    links: _Links
    updates: PyTree
    params: PyTree
    loss_of_one: Callable
    has_aux: bool
    batch: PyTree

    def taken(
        self, groups: Groups, blocks: Blocks, states: _States
    ) -> tuple[PyTree, _States]:
        """A step of the leaves that have a group, and the states after it."""
        gradient, estimated = self.gradient(groups, blocks, states.estimate)
        along, averaged = self.links.direction.update(
            gradient, states.direction, self.params
        )
        alone = lambda *args: self.loss_of_one(*args)[0]
        step, after = self.links.plane(groups, parts_of(self.batch)).update(
            along,
            states.plane,
            self.params,
            value_fn=alone if self.has_aux else self.loss_of_one,
            batch=self.batch,
            grad=gradient,
        )
        averaged = _where_moved(self.params, groups, averaged, states.direction)
        # The gradient is zero where the loss or its derivatives are not finite.
        usable = jnp.array([jnp.any(x != 0) for x in jax.tree.leaves(gradient)]).any()
        keep = lambda new, old: jnp.where(usable, new, old)
        averaged, after = jax.tree.map(keep, (averaged, after), states[1:])
        step = jax.tree.map(lambda x: jnp.where(usable, x, 0), step)
        return step, _States(estimated, averaged, after)

    def gradient(
        self, groups: Groups, blocks: Blocks, state: ScaleByActivityGradientState
    ) -> tuple[PyTree, ScaleByActivityGradientState]:
        """The estimate by the leaves that have a group; zero for the others."""
        leaves, structure = jax.tree.flatten(self.params)

        def merged(parts, others):
            parts = iter(parts)
            pairs = zip(groups, others)
            return structure.unflatten(
                [other if group is None else next(parts) for group, other in pairs]
            )

        loss = lambda parts, example: self.loss_of_one(merged(parts, leaves), example)
        found: Any = self.links.estimate(blocks).update(
            self.updates,
            state,
            [x for x, group in zip(leaves, groups) if group is not None],
            value_fn=loss,
            batch=self.batch,
        )
        gradient, estimated = found
        value = estimated.value.astype(state.value.dtype)
        zeros = map(jnp.zeros_like, leaves)
        return merged(gradient, zeros), estimated._replace(value=value)


def parts_of(batch: PyTree) -> int:
    """The number of parts in which the model of a batch is computed."""
    batch, examples = read_batch(batch)
    if examples < _MANY or any(map(explicit_sharding, jax.tree.leaves(batch))):
        return 1  # JAX takes no array apart along an axis that is sharded explicitly
    return next(parts for parts in _PARTS if examples % parts == 0)


def _where_moved(
    params: PyTree, groups: Groups, after: PyTree, before: PyTree
) -> PyTree:
    """The state of a direction, in which leaves without a group stay as they were.

    What belongs to no leaf, such as a count of steps, stays if any leaf does: it is
    right for the leaves that move least often.
    """
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    moves = {path: group is not None for path, group in zip(paths, groups)}

    def choose(path, new, old):
        tails = (path[i:] for i in range(len(path) + 1))
        of_owner = next((moves[tail] for tail in tails if tail in moves), None)
        moved = all(moves.values()) if of_owner is None else of_owner
        return new if moved else old

    return jax.tree_util.tree_map_with_path(choose, after, before)


class EffortState(NamedTuple):
    """State that decides when :func:`fomoh_ap` moves blocks of estimated gradient.

    Attributes:
      worth: how much more the model falls with the estimated blocks than along the
        exact block alone, as a fraction of the latter; a running average, at most 1,
        and 1 before the first model.
      models: the number of models that ``worth`` is an average of, int32; at most 3.
      due: grows at each model by the share of models at which the estimated blocks are
        moved. They are moved when it reaches 1, and it then falls by 1.
    """

    worth: Float[Array, ""]
    models: Int[Array, ""]
    due: Float[Array, ""]


def reconsidered(
    effort: EffortState,
    takes_all: Bool[Array, ""],
    model: QuadraticModel,
    ended: Bool[Array, ""],
) -> EffortState:
    """The state after a step; it changes after the last step with a model."""
    slope, curvature = model.slope, jnp.abs(model.curvature)
    positive = lambda x: jnp.where(x > 0, x, 1)
    across = model.curvature[0, 1] / positive(curvature[0, 0])
    alone = slope[0] ** 2 / positive(curvature[0, 0])
    remaining = jnp.abs(model.curvature[1, 1] - across * model.curvature[0, 1])
    further = (slope[1] - across * slope[0]) ** 2 / positive(remaining)
    worth = jnp.where(alone > 0, further / positive(alone), further > 0)
    worth = jnp.clip(worth, 0, 1)
    known = takes_all & ended & jnp.isfinite(worth)
    models = jnp.where(known, jnp.minimum(effort.models + 1, _MEMORY), effort.models)
    change = jnp.where(known, worth - effort.worth, 0)
    average = effort.worth + change / jnp.maximum(models, 1).astype(worth.dtype)
    often = jnp.clip(average / _WORTHWHILE, 1 / _RARELY, 1)
    often = jnp.where(models < _MEMORY, 1, often)  # one model alone says little
    due = jnp.where(effort.due >= 1, effort.due - 1, effort.due) + often
    return EffortState(average, models, jnp.where(ended, due, effort.due))


def normalised_average() -> optax.GradientTransformation:
    """The average of updates, each divided by its root mean square.

    Noise is divided away before it is averaged, so that a loud start is soon forgotten.
    The mean squares of a matrix are kept by row and by column: of single elements, of
    which an estimate says little, they would be noise themselves.
    """

    def without_bias(step, decay):
        step = jnp.asarray(step, jnp.float32)
        return decay * (1 - decay**step) / (1 - decay ** (step + 1))

    inner = optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=0.99, min_dim_size_to_factor=2, decay_rate_fn=without_bias
        ),
        optax.ema(0.9),
    )

    def update(updates, state, params=None):
        # Promotes as usual, also where JAX is told to promote nothing implicitly.
        with jax.numpy_dtype_promotion("standard"):
            along, state = inner.update(_widened(updates), state, _widened(params))
        narrowed = jax.tree.map(lambda x, u: x.astype(u.dtype), along, updates)
        return narrowed, state

    # In half precision, the squares of gradients underflow.
    init = lambda params: inner.init(jax.eval_shape(_widened, params))
    return optax.GradientTransformation(init, update)


def _widened(tree: PyTree) -> PyTree:
    """The tree with its leaves in float32, or in their precision if that is higher."""

    def widened(x):
        with jax.numpy_dtype_promotion("standard"):
            return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(widened, tree)
