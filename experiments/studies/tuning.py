"""Self-tuning beside fixed learning rates, and at every batch size: which runs."""

import dataclasses
from typing import Literal

from experiments.studies.runs import SIZES, Run

LEARNING_RATES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


@dataclasses.dataclass(frozen=True)
class Config:
    """FoMoH-KD with each learning rate of a grid, and tuning itself."""

    problems: tuple[Literal["softmax", "mlp", "cnn"], ...] = ("softmax", "mlp", "cnn")
    ks: tuple[int, ...] | None = None
    """Numbers of directions; by default the problem's."""
    rates: Literal["fixed", "self", "all"] = "all"
    """The grid of learning rates, none, or both."""
    seeds: int | None = None
    """Number of seeds, from 0 on; by default the problem's, as are the next two."""
    steps: int | None = None
    batch_size: int | None = None


def runs(config: Config) -> list[Run]:
    """Problem by problem and k by k, the seeds of one learning rate together."""
    rates = {"fixed": LEARNING_RATES, "self": (None,), "all": (*LEARNING_RATES, None)}
    listed = []
    for problem in config.problems:
        size = SIZES[problem]
        batch_size, steps = config.batch_size or size[0], config.steps or size[1]
        listed += [
            Run(problem, "fomoh_kd", k, rate, batch_size, steps, seed)
            for k in config.ks or size.ks
            for rate in rates[config.rates]
            for seed in range(config.seeds or size.seeds)
        ]
    return listed


@dataclasses.dataclass(frozen=True)
class Batches:
    """Self-tuned FoMoH-KD on softmax regression, from small batches to the full one."""

    batch_sizes: tuple[int, ...] = (64, 256, 1024, 4000)
    ks: tuple[int, ...] = (1, 2, 5, 10, 20)
    steps: int = 1000
    seed: int = 2


def batches(config: Batches) -> list[Run]:
    """One run a batch size and k."""
    return [
        Run("softmax", "fomoh_kd", k, None, batch_size, config.steps, config.seed)
        for batch_size in config.batch_sizes
        for k in config.ks
    ]
