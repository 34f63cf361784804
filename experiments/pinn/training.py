"""Train the network: Adam, then L-BFGS, on the gradient by reverse mode."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import study
from experiments.benchmarks.traces import ours
from experiments.pinn.config import Config
from experiments.pinn.equations import EQUATIONS, Equation, points, solution, source
from experiments.pinn.network import initialise, make_loss, network

DIMENSION = 2
TEST_POINTS = 4096  # drawn apart from those of training


class Run(NamedTuple):
    """One seed.

    Attributes:
      params: of the trained network.
      steps: the number of steps at each of the records, ``[records]``.
      residuals: the root of the loss there: the residual relative to the source.
      errors: L2 distance to the solution, relative to its norm, on points of their own.
      seconds: of the training; of the first seed, with the compilation.
    """

    params: Any
    steps: np.ndarray
    residuals: np.ndarray
    errors: np.ndarray
    seconds: float


def train(config: Config) -> dict[str, list[Run]]:
    """Every seed of every equation."""
    equations = {name: EQUATIONS[name] for name in config.equations}
    runs = {}
    for name, equation in study.progress(equations, "equation"):
        run = make_training(equation, config)
        runs[name] = [run(seed) for seed in range(config.seeds)]
    return runs


def make_training(equation: Equation, config: Config) -> Callable[[int], Run]:
    """``run(seed)``; all the seeds share what it compiles.

    Adam finds the basin, L-BFGS its bottom.
    """
    loss, dtype = make_loss(equation, ours), config.precision
    rate = optax.cosine_decay_schedule(5e-3, max(2 * config.adam_steps, 1))
    plain = lambda loss: lambda params, state: jax.value_and_grad(loss)(params)
    adam = optax.with_extra_args_support(optax.adam(rate))
    # Its line search has evaluated the next point already.
    lbfgs, evaluated = optax.lbfgs(memory_size=50), optax.value_and_grad_from_state
    phases = [
        (adam, _make_loop(loss, adam, plain), config.adam_steps),
        (lbfgs, _make_loop(loss, lbfgs, evaluated), config.lbfgs_steps),
    ]

    def run(seed):
        start, inside, elsewhere = jax.random.split(jax.random.key(seed), 3)
        x = points(inside, config.points, DIMENSION, dtype)
        data = x, jax.vmap(lambda x: source(equation, x))(x)
        test = points(elsewhere, TEST_POINTS, DIMENSION, dtype)
        params = initialise(start, (DIMENSION, *config.hidden, 1), dtype)
        steps, records = [0], [_measure(loss, params, data, test)]
        began = time.perf_counter()
        for tx, loop, count in phases:
            # Weak types would have the second chunk compiled anew.
            state = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), tx.init(params))
            whole, rest = divmod(count, config.every)
            for chunk in [config.every] * whole + [rest] * (rest > 0):
                params, state, record = loop(params, state, data, test, chunk)
                steps.append(steps[-1] + chunk)
                records.append(jax.block_until_ready(record))
        seconds = time.perf_counter() - began
        residuals, errors = np.array(records, float).T
        return Run(params, np.array(steps), residuals, errors, seconds)

    return run


def relative_error(params: Any, x: jax.Array) -> jax.Array:
    """L2 distance of the network to the solution over the solution's norm."""
    exact = jax.vmap(solution)(x)
    values = jax.vmap(network, in_axes=(None, 0))(params, x)
    return jnp.linalg.norm(values - exact) / jnp.linalg.norm(exact)


def _measure(loss: Callable, params: Any, data: tuple, test: jax.Array) -> tuple:
    return jnp.sqrt(loss(params, *data)), relative_error(params, test)


def _make_loop(
    loss: Callable,
    tx: optax.GradientTransformationExtraArgs,
    make_gradient: Callable,
) -> Callable:
    """``(params, state, data, test, steps) -> (params, state, record)``, jitted.

    Args:
      loss: to minimise, of the parameters and the data.
      tx: takes the value, the gradient and the loss beside the updates.
      make_gradient: ``make_gradient(loss)(params, state=state)``: value and gradient.
    """

    def loop(params, state, data, test, steps):
        on_data = lambda params: loss(params, *data)
        value_and_grad = make_gradient(on_data)

        def step(carry, _):
            params, state = carry
            value, gradient = value_and_grad(params, state=state)
            updates, state = tx.update(
                gradient, state, params, value=value, grad=gradient, value_fn=on_data
            )
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = lax.scan(step, (params, state), length=steps)
        return params, state, _measure(loss, params, data, test)

    return jax.jit(loop, static_argnums=4)
