"""Directions that the run itself has taken."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int, PyTree

from fomoh_jax._gram_metric import whitening
from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax._span import gram, mixed
from fomoh_jax.directions._source import Directions


class HistoryState(NamedTuple):
    """State of :func:`history`.

    Attributes:
      last: the parameters last seen; zeros before the first.
      steps: a tree like them of leaves ``[m, *leaf.shape]``, the last step first.
      seen: how often parameters were seen, int32.
    """

    last: PyTree[Array]
    steps: PyTree[Inexact[Array, "m ..."]]
    seen: Int[Array, ""]


def history(m: int) -> Directions:
    r"""The last ``m`` steps, as directions of length 1 at right angles to each other.

    .. math:: \mathrm{span}(\theta_t - \theta_{t-1}, \dots,
      \theta_{t-m+1} - \theta_{t-m})

    The steps are those between the parameters that ``update`` is called with, whatever
    else of the chain, or outside it, has moved them. With ``gaussian(k)`` beside them,
    a step can go on as the last ones did: momentum with coefficients that the model
    chooses. Steps that depend on the others, and those that have yet to happen, are
    zero directions, which no solver moves along.

    Args:
      m: number of steps, at least 1. The state holds ``m + 1`` copies of the
        parameters.

    Returns:
      A source of ``m`` directions.

    Raises:
      TypeError: if ``m`` is not a Python integer.
      ValueError: if ``m < 1``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import directions
      >>> source = directions.history(2)
      >>> state = source.init(jnp.zeros(3))
      >>> for x in (jnp.array([0.0, 0, 0]), jnp.array([0.0, 4, 0])):
      ...   state = source.advance(state, x)
      >>> print(jnp.abs(source.sample(jax.random.key(0), x, None, state)))
      [[0. 0. 0.]
       [0. 1. 0.]]
    """
    m = check_size("m", m)

    def init(params):
        # Made from the parameters, which may be abstract, zeros have their sharding.
        last = jax.tree.map(jnp.zeros_like, params)
        steps = jax.tree.map(
            lambda p: jnp.zeros_like(jnp.broadcast_to(p, (m, *jnp.shape(p)))), last
        )
        return HistoryState(last, steps, jnp.zeros((), jnp.int32))

    def advance(state, params):
        def pushed(steps, last, p):
            step = jnp.where(state.seen > 0, p - last, 0)[None]
            return jnp.concatenate([step.astype(steps.dtype), steps[:-1]])

        steps = jax.tree.map(pushed, state.steps, state.last, params)
        last = jax.tree.map(jnp.array, params)  # a copy: params may be donated
        return HistoryState(last, steps, state.seen + 1)

    def sample(key, params, updates, state=()):
        del key, params, updates
        return mixed(whitening(gram(state.steps)).T, state.steps)

    return Directions(m, sample, init, advance, is_random=False)
