"""The methods of the paper, each at its best learning rate: which runs."""

import dataclasses
import itertools
from typing import Literal

import pandas as pd

from experiments.studies.runs import METHODS, SIZES, Run
from experiments.studies.tables import best_rate, of_kind

PLANES = tuple(label for label, (name, _) in METHODS.items() if name == "fomoh_kd")

# The reference implementation takes 0.1362 for FoMoH on softmax regression at batch
# 1024, and 0.544 on the CNN at batch 2048.
GRIDS = {
    ("softmax", "fgd"): (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    ("softmax", "fomoh"): (0.05, 0.1, 0.1362, 0.2, 0.5, 1.0),
    ("softmax", "fomoh_kd"): (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    ("softmax", "fomoh_bp"): (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    ("softmax", "sgd"): (0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
    ("softmax", "adam"): (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    ("cnn", "fgd"): (3e-5, 1e-4, 3e-4, 1e-3),
    ("cnn", "fomoh"): (0.1, 0.2, 0.544, 1.0),
    ("cnn", "fomoh_kd"): (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    ("cnn", "fomoh_bp"): (0.1, 0.2, 0.5, 1.0),
    ("cnn", "sgd"): (0.02, 0.05, 0.1, 0.2),
    ("cnn", "adam"): (3e-4, 1e-3, 3e-3, 1e-2),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper's methods at their best learning rates, constant and with a step."""

    problem: Literal["softmax", "cnn"] = "softmax"
    methods: tuple[Literal[*METHODS], ...] = tuple(METHODS)
    """Methods by the paper's names."""
    schedules: tuple[Literal["constant", "step"], ...] = ("constant", "step")
    """A constant learning rate, or a tenth of it from two thirds of the steps on."""
    self_tuned: tuple[Literal[*PLANES], ...] = PLANES
    """Methods that also run without a learning rate."""
    learning_rates: tuple[float, ...] | None = None
    """The grid, for the methods named; by default the method's own."""
    tuning_seeds: int = 1
    """Seeds of each learning rate of the grid, by whose train loss one is picked."""
    seeds: int | None = None
    """Seeds of the one that is picked; by default the problem's, as the next two."""
    steps: int | None = None
    batch_size: int | None = None


def grid(config: Config) -> list[Run]:
    """Every learning rate of every method."""
    seeds = range(min(config.tuning_seeds, _seeds(config)))
    return [
        dataclasses.replace(kind, learning_rate=rate, seed=seed)
        for kind in _kinds(config)
        for rate in config.learning_rates or GRIDS[config.problem, kind.method]
        for seed in seeds
    ]


def chosen(config: Config, results: pd.DataFrame) -> list[Run]:
    """The best learning rate of each method, by the final loss on the training set."""
    kinds = [
        dataclasses.replace(kind, learning_rate=best_rate(of_kind(results, kind)))
        for kind in _kinds(config)
    ]
    kinds += [_kind(config, label, "constant") for label in config.self_tuned]
    seeds = range(_seeds(config))
    return [dataclasses.replace(kind, seed=seed) for kind in kinds for seed in seeds]


def _seeds(config: Config) -> int:
    return config.seeds or SIZES[config.problem].seeds


def _kinds(config: Config) -> list[Run]:
    pairs = itertools.product(config.methods, config.schedules)
    return [_kind(config, *pair) for pair in pairs]


def _kind(config: Config, label: str, schedule: str) -> Run:
    """A run of that method, without a learning rate yet."""
    (method, k), size = METHODS[label], SIZES[config.problem]
    batch_size, steps = config.batch_size or size.batch_size, config.steps or size.steps
    return Run(config.problem, method, k, None, batch_size, steps, 0, schedule)
