"""Fixed learning rates beside none: which runs."""

import dataclasses
from typing import Literal

from experiments.studies.runs import Run

LEARNING_RATES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the study of a problem is."""

    batch_size: int
    steps: int
    ks: tuple[int, ...]
    seeds: int


SIZES = {
    "softmax": Size(1024, 2000, (2, 5, 10, 20), 5),
    "mlp": Size(1024, 2000, (2, 5, 10, 20), 3),
    "cnn": Size(256, 400, (2, 5), 2),
}


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
    fixed = LEARNING_RATES if config.rates != "self" else ()
    rates = (*fixed, *((None,) if config.rates != "fixed" else ()))
    listed = []
    for problem in config.problems:
        size = SIZES[problem]
        listed += [
            Run(
                problem,
                "fomoh_kd",
                k,
                rate,
                config.batch_size or size.batch_size,
                config.steps or size.steps,
                seed,
            )
            for k in config.ks or size.ks
            for rate in rates
            for seed in range(config.seeds or size.seeds)
        ]
    return listed
