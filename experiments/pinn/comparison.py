"""What the residual loss and its gradient cost, by every way to the operator."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from experiments.benchmarks.measurement import OURS, Contender, Limits, Row, measure
from experiments.pinn import equations
from experiments.pinn.config import Config
from experiments.pinn.equations import EQUATIONS, Equation
from experiments.pinn.network import initialise, make_loss
from experiments.pinn.operators import FACTORED, WAYS

# How far a way may be from ours, relative to the largest element of a result.
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}
LOSS, GRADIENT = "residual loss", "its gradient"
QUANTITIES = {LOSS: lambda loss: loss, GRADIENT: jax.grad}


def compare(config: Config) -> list[dict[str, Any]]:
    """The rows, measured; every way that runs has the numbers of ours.

    Raises:
      DisagreementError: if one has not.
    """
    limits = Limits(
        repeats=config.repeats,
        seconds=config.seconds_per_row,
        tolerance=TOLERANCE[config.precision],
    )
    records = []
    for row in (bar := tqdm(list(rows(config)), unit="row")):
        bar.set_postfix_str(row.name)
        records.append(measure(row, limits))
    return records


def rows(config: Config) -> Iterator[Row]:
    """The loss and its gradient of each equation, in each number of dimensions."""
    for name in config.equations:
        equation = EQUATIONS[name]
        for quantity in QUANTITIES:
            for dimension in config.dimensions:
                make = functools.partial(
                    contenders, equation, quantity, dimension, config
                )
                workload = f"{equation.title}, {quantity}"
                yield Row(workload, {"D": dimension}, make)


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


def rivals() -> list[str]:
    """All the ways but ours."""
    return [name for name in WAYS if name != OURS]
