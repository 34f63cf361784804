"""What the residual loss and its gradient cost, by every way to the operator."""

import functools
from typing import Any

import jax

from experiments import study
from experiments.benchmarks.measurement import Contender, Limits, Row, measure
from experiments.benchmarks.traces import FACTORED, WAYS
from experiments.pinn import equations
from experiments.pinn.config import Config
from experiments.pinn.equations import EQUATIONS, Equation
from experiments.pinn.network import initialise, make_loss

# How far a way may be from ours, relative to the largest element of a result.
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}
QUANTITIES = {"residual loss": lambda loss: loss, "its gradient": jax.grad}


def compare(config: Config) -> list[dict[str, Any]]:
    """The loss and its gradient of each equation, in each number of dimensions.

    Raises:
      DisagreementError: if a way that runs has other numbers than ours.
    """
    limits = Limits(
        repeats=config.repeats,
        seconds=config.seconds_per_row,
        tolerance=TOLERANCE[config.precision],
    )
    rows = {}
    for equation in map(EQUATIONS.get, config.equations):
        for quantity in QUANTITIES:
            for dimension in config.dimensions:
                make = functools.partial(
                    contenders, equation, quantity, dimension, config
                )
                row = Row(f"{equation.title}, {quantity}", {"D": dimension}, make)
                rows[row.name] = row
    return [measure(row, limits) for _, row in study.progress(rows, "row")]


def contenders(
    equation: Equation, quantity: str, dimension: int, config: Config
) -> dict[str, Contender]:
    """All the ways, ours first, on a network that is not trained."""
    start, inside = jax.random.split(jax.random.key(0))
    params = initialise(start, (dimension, *config.hidden, 1), config.precision)
    x = equations.points(inside, config.points, dimension, config.precision)
    args = params, x, jax.vmap(lambda x: equations.source(equation, x))(x)
    make = QUANTITIES[quantity]
    return {
        name: Contender(make(make_loss(equation, way)), args)
        for name, way in WAYS.items()
        if name != FACTORED or equation.weights is not None
    }
