"""Minimise a function from several starts, with a search for the learning rate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import study


class Contender(NamedTuple):
    """A method, and the learning rates that it is tried with.

    Attributes:
      make: ``make(rate, key)``, a transformation that takes ``value_fn``.
      rates: the grid to search; one rate is no search.
    """

    make: Callable[[jax.Array, jax.Array], optax.GradientTransformation]
    rates: Sequence[float] = (1.0,)


class Runs(NamedTuple):
    """A method from every start, with its best learning rate.

    Attributes:
      rate: the learning rate.
      losses: before each step and after the last, ``[seeds, steps + 1]``.
      points: where it ended, ``[seeds, dimensions]``.
    """

    rate: float
    losses: np.ndarray
    points: np.ndarray


def exact_gradient(
    gradient: Callable = jax.grad,
) -> optax.GradientTransformationExtraArgs:
    """The first link of a chain: the updates are the gradient of ``value_fn``.

    Args:
      gradient: the transformation of ``value_fn``. Where no reverse pass can go,
        ``jax.jacfwd`` takes a tangent for each parameter.
    """

    def update(updates, state, params=None, *, value_fn, **_):
        del updates
        return gradient(value_fn)(params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def newton() -> optax.GradientTransformationExtraArgs:
    """Newton's method with the exact gradient and ``jax.hessian``, for comparison."""

    def update(updates, state, params=None, *, value_fn, **_):
        del updates
        gradient, hessian = jax.grad(value_fn)(params), jax.hessian(value_fn)(params)
        return -jnp.linalg.solve(hessian, gradient), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def take_step(
    tx: optax.GradientTransformation, params: Any, state: Any, updates=None, **given
) -> tuple[Any, Any]:
    """The parameters and the state after one step of an optimiser.

    Args:
      tx: the optimiser.
      params: before the step.
      state: likewise.
      updates: the gradient, for an optimiser that does not take it itself.
      **given: arguments such as ``value_fn``; a plain optimiser ignores them.
    """
    tx = optax.with_extra_args_support(tx)
    updates, state = tx.update(updates, state, params, **given)
    return optax.apply_updates(params, updates), state


def make_step(loss: Callable, tx: optax.GradientTransformation) -> Callable:
    """``step(params, state, *data) -> (params, state)`` on ``loss(params, *data)``."""

    def step(params, state, *data):
        on_data = lambda params: loss(params, *data)
        return take_step(tx, params, state, value_fn=on_data)

    return step


def minimise(
    loss: Callable, contender: Contender, starts: jax.Array, steps: int
) -> Runs:
    """The runs with the rate of the best median loss; all rates are one program."""

    def run(rate, start, key):
        tx = contender.make(rate, key)
        step = make_step(loss, tx)
        both = lambda carry, _: (step(*carry), loss(carry[0]))
        (x, _), losses = jax.lax.scan(both, (start, tx.init(start)), length=steps)
        return jnp.append(losses, loss(x)), x

    starts = jnp.asarray(starts)
    keys = jax.random.split(jax.random.key(1), len(starts))
    every = jax.vmap(jax.vmap(run, (None, 0, 0)), (0, None, None))
    rates = jnp.asarray(contender.rates, starts.dtype)
    losses, points = map(np.asarray, jax.jit(every)(rates, starts, keys))
    final = np.median(_finite(losses[:, :, -1]), axis=1)
    best = int(final.argmin())
    return Runs(float(contender.rates[best]), _finite(losses[best]), points[best])


def minimise_all(
    loss: Callable, contenders: Mapping[str, Contender], starts: jax.Array, steps: int
) -> dict[str, Runs]:
    """Every contender from the same starts."""
    return {
        name: minimise(loss, contender, starts, steps)
        for name, contender in study.progress(contenders, "method")
    }


def searched(contenders: Mapping[str, Contender]) -> str:
    """A sentence with the grids of those whose learning rate is searched for."""
    grids = "; ".join(
        f"{name} over {', '.join(f'{rate:g}' for rate in contender.rates)}"
        for name, contender in contenders.items()
        if len(contender.rates) > 1
    )
    return f"Learning rates of the best median final loss for these starts: {grids}."


def steps_to(losses: np.ndarray, target: float) -> np.ndarray:
    """Steps of each seed until its loss is at the target; infinite if it never is."""
    hits = losses <= target
    return np.where(hits.any(1), hits.argmax(1), np.inf)


def _finite(losses: np.ndarray) -> np.ndarray:
    """Counts a loss that is NaN as infinite, so that it is never the best."""
    return np.where(np.isnan(losses), np.inf, losses)
