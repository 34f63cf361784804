"""Deterministic problems of CUTEst, by minimisers with and without a gradient.

    pip install '.[cutest]'
    python -m experiments.sif2jax --minutes 10   # kept one by one, and continued
    python -m experiments.sif2jax --report

The problems are the unconstrained ones of sif2jax with at most 100 variables, from
their own starts, in float64. Every method makes so many steps, or fewer where they take
long. What a step is differs between them: compare the times.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree

from experiments import records, study
from experiments.benchmarks.measurement import first_line
from experiments.sif2jax import report

# Losses are kept at each of the first steps, then at steps that grow by the ratio.
DENSE, RATIO = 20, 1.1
# Steps that are compiled as one program.
STRETCH = 50


@dataclasses.dataclass(frozen=True)
class Config:
    """Options: which runs are made."""

    problems: tuple[str, ...] = ()
    """Names of problems; by default all that are small enough."""
    methods: tuple[str, ...] = ()
    """Names of methods; by default all."""
    variables: int = 100
    """Largest number of variables of a problem."""
    steps: int = 2000
    seconds: float = 60.0
    """A run that takes longer ends with fewer steps."""
    minutes: float = float("inf")
    """No run is begun after these."""
    part: str = "1/1"
    """i/n: the i-th of n parts, for a process of its own."""
    results: Path = study.RESULTS / "sif2jax"
    report: bool = False
    """Nothing is run; the tables and the figure are made of what is there."""


def main(args: list[str] | None = None) -> None:
    config = tyro.cli(Config, description=__doc__, args=args)
    file = config.results / "runs.jsonl"
    if config.report:
        return report.main(file)
    jax.config.update("jax_enable_x64", True)
    # These imports are needed to run and not to report.
    from sif2jax import unconstrained_minimisation_problems as problems

    from experiments.sif2jax.methods import METHODS

    start, kept = time.monotonic(), records.by_run(file, key)
    part, parts = map(int, config.part.split("/"))
    for problem in problems[part - 1 :: parts]:
        if config.problems and problem.name not in config.problems:
            continue
        x, unflatten = ravel_pytree(problem.y0)
        if x.size > config.variables:
            continue
        loss = lambda x: problem.objective(unflatten(x), problem.args)
        for method in config.methods or METHODS:
            if time.monotonic() - start > 60 * config.minutes:
                return
            one = {"problem": problem.name, "method": method, "steps": config.steps}
            if key(one) in kept:
                continue
            seconds = config.seconds
            record = one | run(METHODS[method], loss, x, config.steps, seconds)
            records.append(file, record)
            end = record.get("error") or record["losses"][-1]
            print(problem.name, x.size, method, end)


def run(
    method: Any, loss: Any, x: jax.Array, steps: int, seconds: float = np.inf
) -> dict[str, Any]:
    """The record of a run, or the failure of a method that may fail."""
    try:
        return measure(method, loss, x, steps, seconds)
    except method.failures as error:
        return {"error": first_line(error)}


def measure(
    method: Any, loss: Any, x: jax.Array, steps: int, seconds: float
) -> dict[str, Any]:
    """The least loss so far at some of the steps, and how long a step takes."""

    def stretch(carry):
        def step(carry, _):
            point, state = method.step(loss, *carry)
            return (point, state), loss(point)

        return jax.lax.scan(step, carry, length=min(STRETCH, steps))

    begun = time.perf_counter()
    start = x, jax.tree.map(jnp.asarray, method.init(loss, x))
    compiled = jax.jit(stretch).lower(start).compile()
    compile_seconds = time.perf_counter() - begun
    jax.block_until_ready(compiled(start))
    carry, found, done = start, [loss(x)[None]], 0
    begun, taken = time.perf_counter(), 0.0
    while done < steps and taken < seconds:
        carry, losses = jax.block_until_ready(compiled(carry))
        found.append(losses)
        done += len(losses)
        taken = time.perf_counter() - begun
    least = np.concatenate(found)[: steps + 1]
    least = np.fmin.accumulate(np.where(np.isfinite(least), least, np.inf))
    places = places_to_keep(min(done, steps))
    return {
        "variables": x.size,
        "places": places,
        "losses": [float(f"{value:.9g}") for value in least[places]],
        "seconds_a_step": float(f"{taken / done:.3g}"),
        "compile_seconds": round(compile_seconds, 1),
        "environment": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    }


def places_to_keep(steps: int) -> list[int]:
    """Steps to keep: all at first, then a geometric sequence, and the last."""
    places = list(range(min(DENSE, steps) + 1))
    while places[-1] < steps:
        places.append(min(steps, max(places[-1] + 1, int(RATIO * places[-1]))))
    return places


def key(record: dict[str, Any]) -> tuple:
    """What identifies a run."""
    return record["problem"], record["method"], record["steps"]


if __name__ == "__main__":
    main()
