"""Results grouped by configuration, and what is said of a group."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from experiments.plotting import mean_and_deviation
from experiments.studies.runs import Result, Run


class Setting(NamedTuple):
    """What runs have in common that can be compared."""

    problem: str
    batch_size: int
    steps: int

    @property
    def title(self) -> str:
        return f"{self.problem}, batch {self.batch_size:,}, {self.steps:,} steps"

    @property
    def slug(self) -> str:
        return f"{self.problem}-batch{self.batch_size}-steps{self.steps}"


def by_setting(results: Iterable[Result]) -> dict[Setting, list[Result]]:
    """The results of each problem, batch size and number of steps."""
    groups = defaultdict(list)
    for result in results:
        run = result.run
        groups[Setting(run.problem, run.batch_size, run.steps)].append(result)
    return dict(groups)


def by_rate(results: Iterable[Result]) -> dict[float | None, list[Result]]:
    """The results of each learning rate, from large to small; none at the end."""
    groups = defaultdict(list)
    for result in results:
        groups[result.run.learning_rate].append(result)
    order = lambda rate: math.inf if rate is None else -rate
    return {rate: groups[rate] for rate in sorted(groups, key=order)}


def of_kind(results: Iterable[Result], kind: Run) -> list[Result]:
    """The results that differ from a run by learning rate and seed alone."""
    plain = lambda run: replace(run, learning_rate=None, seed=0)
    return [result for result in results if plain(result.run) == plain(kind)]


def final_loss(result: Result) -> float:
    """Train loss at the end, infinite if the run has diverged."""
    return math.inf if result.diverged else result.train_loss


def best_rate(results: Iterable[Result]) -> float | None:
    """The learning rate of the least mean train loss; None if there is none.

    Over the seeds that all the learning rates have, so that one which got more of them
    is neither better nor worse off. The test images have no say.
    """
    groups = by_rate(r for r in results if r.run.learning_rate is not None)
    if not groups:
        return None
    seeds = set.intersection(*({r.run.seed for r in g} for g in groups.values()))

    def loss(rate):
        group = [r for r in groups[rate] if r.run.seed in seeds or not seeds]
        return float(np.mean([final_loss(r) for r in group]))

    return min(groups, key=loss)


def at_edge(rate: float, results: Iterable[Result]) -> bool:
    """Whether a better learning rate may lie outside those that were tried."""
    rates = [r for r in by_rate(results) if r is not None]
    return rate in (min(rates), max(rates))


def show(results: list[Result], field: str, digits: int = 3) -> str:
    """Mean ± standard deviation over the seeds, or how many of them have diverged."""
    if not results:
        return "–"
    if diverged := sum(r.diverged for r in results):
        return (
            "diverged" if len(results) == 1 else f"{diverged}/{len(results)} diverged"
        )
    return mean_and_deviation(np.array([getattr(r, field) for r in results]), digits)


def growth(results: list[Result]) -> float:
    """The largest minibatch loss after the tenth step over the first, of all seeds."""
    return max(
        math.inf if r.largest_loss is None else r.largest_loss / r.first_loss
        for r in results
    )
