"""The methods of the paper, each at its best learning rate: which runs."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Literal

import pandas as pd

from experiments.studies.runs import SIZES, Run
from experiments.studies.summary import best_rate, of_kind

# As the paper calls them: the name in experiments.methods, and k.
METHODS = {
    "FGD": ("fgd", 1),
    "FoMoH": ("fomoh", 1),
    "FoMoH-2D": ("fomoh_kd", 2),
    "FoMoH-3D": ("fomoh_kd", 3),
    "FoMoH-10D": ("fomoh_kd", 10),
    "FoMoH-BP": ("fomoh_bp", 1),
    "SGD": ("sgd", 1),
    "Adam": ("adam", 1),
}

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
    methods: tuple[str, ...] = tuple(METHODS)
    """As the paper calls them."""
    schedules: tuple[Literal["constant", "step"], ...] = ("constant", "step")
    """A constant learning rate, or a tenth of it from two thirds of the steps on."""
    self_tuned: tuple[str, ...] = ("FoMoH-2D", "FoMoH-3D", "FoMoH-10D")
    """Those that also run without a learning rate."""
    learning_rates: tuple[float, ...] | None = None
    """The grid, for the methods named; by default the method's own."""
    tuning_seeds: int = 1
    """Seeds of each learning rate of the grid, by whose train loss one is picked."""
    seeds: int | None = None
    """Seeds of the one that is picked; by default the problem's, as the next two."""
    steps: int | None = None
    batch_size: int | None = None

    def __post_init__(self):
        _check("methods", self.methods, METHODS)
        planes = [label for label, (name, _) in METHODS.items() if name == "fomoh_kd"]
        _check("self-tuned", self.self_tuned, planes)


def _check(name: str, labels: Iterable[str], known: Collection[str]) -> None:
    if unknown := sorted(set(labels) - set(known)):
        raise SystemExit(
            f"--{name} are among {', '.join(known)}; got {', '.join(unknown)}."
        )


def grid(config: Config) -> list[Run]:
    """Every learning rate of every method."""
    return [
        run
        for kind in _kinds(config)
        for rate in config.learning_rates or GRIDS[config.problem, kind.method]
        for run in _seeds(dataclasses.replace(kind, learning_rate=rate), config, True)
    ]


def chosen(config: Config, results: pd.DataFrame) -> list[Run]:
    """The best learning rate of each method, by the final loss on the training set."""
    runs = []
    for kind in _kinds(config):
        rate = best_rate(of_kind(results, kind))
        runs += _seeds(dataclasses.replace(kind, learning_rate=rate), config)
    for label in config.self_tuned:
        runs += _seeds(_kind(config, label, "constant"), config)
    return runs


def _kinds(config: Config) -> list[Run]:
    return [
        _kind(config, label, schedule)
        for label in config.methods
        for schedule in config.schedules
    ]


def _kind(config: Config, label: str, schedule: str) -> Run:
    """A run of that method, without a learning rate yet."""
    (method, k), size = METHODS[label], SIZES[config.problem]
    batch_size, steps = config.batch_size or size.batch_size, config.steps or size.steps
    return Run(config.problem, method, k, None, batch_size, steps, 0, schedule)


def _seeds(kind: Run, config: Config, tuning: bool = False) -> list[Run]:
    seeds = config.seeds or SIZES[config.problem].seeds
    number = min(config.tuning_seeds, seeds) if tuning else seeds
    return [dataclasses.replace(kind, seed=seed) for seed in range(number)]
