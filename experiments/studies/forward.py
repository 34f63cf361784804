"""Training by perturbed activations beside backpropagation: which runs."""

import dataclasses
from typing import Literal, NamedTuple

import pandas as pd

from experiments.studies.runs import Run
from experiments.studies.tables import of_kind

RATES = {
    "ap_adam": (3e-4, 1e-3, 3e-3),
    "ap_sgd": (0.03, 0.1, 0.3),
    "adam": (3e-4, 1e-3, 3e-3),
    "sgd": (0.03, 0.1, 0.3),
    "fgd": (1e-4, 3e-4, 1e-3),
}
# The name in experiments.methods, the number of directions, and of blocks.
CONTENDERS = {
    "fomoh_ap()": ("fomoh_ap", 1, 2),
    "fomoh_ap(blocks=None)": ("fomoh_ap", 1, None),
    "tail only": ("tail", 1, 2),
    "estimate, Adam": ("ap_adam", 1, 2),
    "estimate, SGD": ("ap_sgd", 1, 2),
    "backpropagation, Adam": ("adam", 1, None),
    "backpropagation, SGD": ("sgd", 1, None),
    "FGD": ("fgd", 1, None),
    "FoMoH-KD(10)": ("fomoh_kd", 10, None),
}
OURS, ALL_BLOCKS, TAIL, *_ = CONTENDERS


class Problem(NamedTuple):
    """A model, its data, and who trains it for how long."""

    title: str
    model: str
    data: str
    batch_size: int
    steps: int
    seeds: int
    contenders: tuple[str, ...]
    rates: dict[str, tuple[float, ...]] = RATES


_BOTH = "estimate, Adam", "backpropagation, Adam"
PROBLEMS = {
    "mlp": Problem(
        *("784-100-10", "mlp", "small", 1024, 1000, 3),
        tuple(name for name in CONTENDERS if name != ALL_BLOCKS),  # it has two
    ),
    "deep": Problem(
        *("784-256-256-256-256-10", "deep", "small", 1024, 600, 3),
        tuple(CONTENDERS)[:7],
    ),
    "cnn": Problem(
        *("CNN", "cnn", "small", 256, 400, 3, (OURS, TAIL, *_BOTH)),
        dict.fromkeys(("ap_adam", "adam"), (3e-4, 1e-3)),
    ),
    "rows": Problem(
        "transformer over rows", "rows", "small", 256, 400, 3, (OURS, TAIL, *_BOTH)
    ),
    "vgg": Problem("VGG, digits", "vgg", "small", 16, 400, 1, (OURS, TAIL)),
    "synthetic": Problem(
        "VGG, synthetic", "vgg", "synthetic", 16, 400, 1, (OURS, TAIL)
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Training by perturbed activations, and by other ways to compare."""

    problems: tuple[Literal[*PROBLEMS], ...] = tuple(PROBLEMS)
    cosines: bool = True
    """Also the cosines between estimates and gradients."""
    seeds: int | None = None
    """Number of seeds, from 0 on; by default the problem's."""
    steps: int | None = None
    """Number of steps; by default the problem's."""


def grid(config: Config) -> list[Run]:
    """Every learning rate, judged on digits that are held out from training."""
    return [
        dataclasses.replace(kind, learning_rate=rate, data="validation")
        for kind in _kinds(config)
        for rate in _problem(kind).rates.get(kind.method, ())
    ]


def chosen(config: Config, kept: pd.DataFrame) -> list[Run]:
    """Every method, at the learning rate that is best on the validation digits."""
    return [
        dataclasses.replace(kind, learning_rate=best_rate(kept, kind), seed=seed)
        for kind in _kinds(config)
        for seed in range(_seeds(config, kind))
    ]


def best_rate(kept: pd.DataFrame, kind: Run) -> float | None:
    """The rate of the best validation accuracy, and of the least loss among equals.

    The loss alone would choose the rate that fits the training digits least.
    """
    if kind.method not in RATES:
        return None
    tried = validated(kept, kind)
    tried = tried[~tried.diverged.astype(bool)]
    if tried.empty:
        raise SystemExit(f"Every learning rate has diverged: {kind}.")
    tried = tried.astype({"test_accuracy": float, "test_loss": float})
    best = tried.sort_values(["test_accuracy", "test_loss"], ascending=[False, True])
    return float(best.learning_rate.iloc[0])


def validated(kept: pd.DataFrame, kind: Run) -> pd.DataFrame:
    """The results of every learning rate of a run on the validation digits."""
    return of_kind(kept, dataclasses.replace(kind, data="validation"))


def label_of(run: Run) -> str:
    """The name of a contender."""
    kind = run.method, run.k, run.blocks
    return next(name for name, known in CONTENDERS.items() if known == kind)


def _kinds(config: Config) -> list[Run]:
    kinds = []
    for problem in map(PROBLEMS.get, config.problems):
        steps = config.steps or problem.steps
        for method, k, blocks in map(CONTENDERS.get, problem.contenders):
            sizes = problem.batch_size, steps, 0
            options = {"blocks": blocks, "data": problem.data}
            kinds.append(Run(problem.model, method, k, None, *sizes, **options))
    return kinds


def _seeds(config: Config, kind: Run) -> int:
    return config.seeds or _problem(kind).seeds


def _problem(kind: Run) -> Problem:
    known = {(p.model, p.data): p for p in PROBLEMS.values()}
    return known[kind.problem, kind.data]
