"""Fixed learning rates beside none: which runs."""

import dataclasses
import itertools
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
        seeds = range(config.seeds or size.seeds)
        listed += [
            Run(problem, "fomoh_kd", k, rate, batch_size, steps, seed)
            for k, rate, seed in itertools.product(
                config.ks or size.ks, rates[config.rates], seeds
            )
        ]
    return listed
