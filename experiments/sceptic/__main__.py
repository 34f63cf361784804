"""Compare every way to train without backpropagation, and some with it.

    python -m experiments.sceptic --problems mlp language --minutes 10
    taskset -c 0 python -m experiments.sceptic --part 1/2   # and on another core, 2/2

Each run is kept as a line of RESULTS/PROBLEM.jsonl, and is not repeated while that is
there. A run is so many forward passes long, in time: see ``experiments.sceptic.clock``.

    python -m experiments.sceptic --report   # tables and figures of what there is
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from experiments import study
from experiments.sceptic import digits, language, ode, report, teacher
from experiments.sceptic.contenders import CONTENDERS, suits
from experiments.sceptic.problem import Problem
from experiments.sceptic.runs import run_all

PROBLEMS: dict[str, Callable[[], Problem]] = {
    **{
        name: functools.partial(digits.make, name) for name in ("softmax", "mlp", "cnn")
    },
    "language": language.make,
    "lora": functools.partial(language.make, rank=4),
    "ode": ode.make,
    **{
        f"teacher-{inputs}-{rank}": functools.partial(teacher.make, inputs, rank)
        for inputs, rank in teacher.SIZES
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options: which runs are made."""

    problems: tuple[Literal[*PROBLEMS], ...] = tuple(PROBLEMS)
    methods: tuple[Literal[*CONTENDERS], ...] = tuple(CONTENDERS)
    passes: int | None = None
    """How long a run is, in the times of a forward pass; by default the problem's."""
    seeds: int = 3
    """Seeds of the best learning rate, with the one that was searched with."""
    minutes: float = float("inf")
    """No run is begun after these."""
    part: str = "1/1"
    """i/n: the i-th of n parts, for a process of its own."""
    results: Path = study.RESULTS / "sceptic"
    report: bool = False
    """Nothing is run; the tables and figures are made of what is there."""


def main(args: list[str] | None = None) -> None:
    config = tyro.cli(Config, description=__doc__, args=args)
    if config.report:
        return report.main(config.results)
    start = time.monotonic()
    is_over = lambda: time.monotonic() - start > 60 * config.minutes
    part, parts = map(int, config.part.split("/"))
    pairs = list(itertools.product(config.problems, config.methods))
    made = functools.cache(lambda name: PROBLEMS[name]())
    for name, method in pairs[part - 1 :: parts]:
        if is_over():
            return
        problem = made(name)
        if suits(CONTENDERS[method], problem):
            run_all(
                *(name, method, problem, config.passes or problem.passes),
                *(config.seeds, config.results / f"{name}.jsonl", is_over),
            )


if __name__ == "__main__":
    main()
