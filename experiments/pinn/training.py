"""Train the network: Adam, then L-BFGS, on the gradient by reverse mode."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import study
from experiments.benchmarks.ways import laplacian
from experiments.minimisation import take_step
from experiments.pinn import problem
from experiments.pinn.problem import EQUATIONS, Equation, points

DIMENSION = 2
TEST_POINTS = 4096  # drawn apart from those of training


@dataclasses.dataclass(frozen=True)
class Config:
    """Poisson's equation and an anisotropic one in the disc, by a tanh network."""

    equations: tuple[Literal[*EQUATIONS], ...] = tuple(EQUATIONS)
    """The equations to solve and to compare."""
    hidden: tuple[int, ...] = (32, 32, 32)
    """Widths of the network's hidden layers."""
    points: int = 1024
    """Points in the disc, drawn once a seed, and in the balls of the comparison."""
    adam_steps: int = 300
    """Iterations of Adam, with which the training starts."""
    lbfgs_steps: int = 3000
    """Iterations of L-BFGS, with which it ends."""
    every: int = 100
    """Iterations between two measurements of the error."""
    seeds: int = 3
    """Random initialisations; 0 for the comparison alone."""
    dimensions: tuple[int, ...] = (2, 10, 50)
    """Dimensions of the balls in which the ways to the operator are compared."""
    repeats: int = 15
    """Rounds of the comparison in which each way is timed once; 0 to count alone."""
    seconds_per_row: float = 15.0
    """A row of the comparison that takes longer stops early, after three rounds."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder pinn."""


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
    loss = problem.make_loss(equation, laplacian)
    rate = optax.cosine_decay_schedule(5e-3, max(2 * config.adam_steps, 1))
    plain = lambda loss: lambda params, state: jax.value_and_grad(loss)(params)
    # The line search of L-BFGS has evaluated the next point already.
    evaluated = optax.value_and_grad_from_state
    adam, lbfgs = optax.adam(rate), optax.lbfgs(memory_size=50)
    phases = [
        (adam, make_loop(loss, adam, plain), config.adam_steps),
        (lbfgs, make_loop(loss, lbfgs, evaluated), config.lbfgs_steps),
    ]

    def run(seed):
        start, inside, elsewhere = jax.random.split(jax.random.key(seed), 3)
        x = points(inside, config.points, DIMENSION)
        data = x, jax.vmap(lambda x: problem.source(equation, x))(x)
        test = points(elsewhere, TEST_POINTS, DIMENSION)
        params = problem.initialise(start, (DIMENSION, *config.hidden, 1))
        steps, records = [0], [measure(loss, params, data, test)]
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


def make_loop(loss: Callable, tx: Any, make_gradient: Callable) -> Callable:
    """Makes ``loop(params, state, data, test, steps)``, compiled for each ``steps``.

    Args:
      loss: of the parameters and the data.
      tx: the optimiser.
      make_gradient: ``make_gradient(loss)(params, state=state)``, value and gradient.

    Returns:
      A function that returns the parameters, the state and what ``measure`` returns.
    """

    def loop(params, state, data, test, steps):
        on_data = lambda params: loss(params, *data)

        def step(carry, _):
            value, gradient = make_gradient(on_data)(carry[0], state=carry[1])
            known = {"value": value, "grad": gradient, "value_fn": on_data}
            return take_step(tx, *carry, gradient, **known), None

        (params, state), _ = lax.scan(step, (params, state), length=steps)
        return params, state, measure(loss, params, data, test)

    return jax.jit(loop, static_argnums=4)


def measure(
    loss: Callable, params: Any, data: tuple, test: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The relative residual on the data and the relative error on other points."""
    return jnp.sqrt(loss(params, *data)), relative_error(params, test)


def relative_error(params: Any, x: jax.Array) -> jax.Array:
    """L2 distance of the network to the solution over the solution's norm."""
    exact = jax.vmap(problem.solution)(x)
    values = jax.vmap(problem.network, in_axes=(None, 0))(params, x)
    return jnp.linalg.norm(values - exact) / jnp.linalg.norm(exact)
