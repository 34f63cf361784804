"""The configuration of a run, the sizes of the studies, and a table of all runs."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments import records


@dataclasses.dataclass(frozen=True)
class Run:
    """The configuration of a run: all that its result depends on.

    Attributes:
      problem: a key of ``experiments.models.MODELS``.
      method: one that ``experiments.methods`` makes.
      k: directions of fomoh_kd; 1 for the other methods.
      learning_rate: None for a method that tunes itself.
      schedule: "constant", or "step": a tenth after two thirds of the steps.
      blocks: of a method that perturbs activations.
      data: one that ``experiments.data.load`` has.
      batch_size, steps, seed: the steps are rounded up to whole epochs.
    """

    problem: str
    method: str
    k: int
    learning_rate: float | None
    batch_size: int
    steps: int
    seed: int
    schedule: str = "constant"
    blocks: int | None = None
    data: str = "small"


class Size(NamedTuple):
    """The default size of the studies of a problem."""

    batch_size: int
    steps: int
    ks: tuple[int, ...]
    seeds: int


SIZES = {
    "softmax": Size(1024, 2000, (2, 5, 10, 20), 5),
    "mlp": Size(1024, 2000, (2, 5, 10, 20), 3),
    "cnn": Size(256, 400, (2, 5), 2),
}

# The paper's names of the methods: the name in experiments.methods, and k.
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


def load_all(file: Path) -> pd.DataFrame:
    """Every result that is kept, a row each, in the order of the runs.

    Returns:
      The columns of a record, those of its run, the run itself as ``run``, and as
      ``final`` the train loss at the end, infinite if the run has diverged. NaN stands
      for the learning rate of a method that tunes itself.
    """
    each = records.by_run(file, lambda record: Run(**record["run"]))
    rows = [
        each[run] | dataclasses.asdict(run) | {"run": run}
        for run in sorted(each, key=str)
    ]
    frame = pd.DataFrame(rows, columns=None if rows else ["run"])
    if rows:
        numbers = ["learning_rate", "train_loss", "largest_loss", "first_loss"]
        frame = frame.astype(dict.fromkeys(numbers, float))
        frame["final"] = frame.train_loss.where(~frame.diverged, np.inf)
    return frame
