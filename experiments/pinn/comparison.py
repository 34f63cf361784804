"""Times of the residual loss and its gradient, by every way to the operator."""

import functools
import itertools
from typing import Any

import jax

from experiments import study
from experiments.benchmarks.measurement import Contender, Limits, Row, measure
from experiments.benchmarks.ways import FACTORED, TRACES
from experiments.pinn import problem
from experiments.pinn.problem import EQUATIONS, Equation
from experiments.pinn.training import Config

QUANTITIES = {"residual loss": lambda loss: loss, "its gradient": jax.grad}


def compare(config: Config) -> list[dict[str, Any]]:
    """The loss and its gradient of each equation, in each number of dimensions.

    Raises:
      DisagreementError: if a way that runs has other numbers than ours.
    """
    limits = Limits(config.repeats, config.seconds_per_row, tolerance=1e-10)
    rows = {}
    equations = map(EQUATIONS.get, config.equations)
    for each in itertools.product(equations, QUANTITIES, config.dimensions):
        equation, quantity, dimension = each
        make = functools.partial(contenders, *each, config)
        row = Row(f"{equation.title}, {quantity}", {"D": dimension}, make)
        rows[row.name] = row
    return [measure(row, limits) for _, row in study.progress(rows, "row")]


def contenders(
    equation: Equation, quantity: str, dimension: int, config: Config
) -> dict[str, Contender]:
    """Every way, ours first, on a network that is not trained."""
    start, inside = jax.random.split(jax.random.key(0))
    params = problem.initialise(start, (dimension, *config.hidden, 1))
    x = problem.points(inside, config.points, dimension)
    args = params, x, jax.vmap(lambda x: problem.source(equation, x))(x)
    make = QUANTITIES[quantity]
    return {
        name: Contender(make(problem.make_loss(equation, way)), args)
        for name, way in TRACES.items()
        if name != FACTORED or equation.weights(x[0]) is not None
    }
