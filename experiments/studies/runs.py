"""What a run is, what comes out of it, and the folder that keeps it."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Run:
    """The configuration of a run: all that its result depends on.

    Attributes:
      problem: a key of ``experiments.models.MODELS``.
      method: one of ``experiments.methods.NAMES``.
      k: directions of fomoh_kd; 1 for the other methods.
      learning_rate: None for a method that tunes itself.
      schedule: "constant", or "step": a tenth after two thirds of the steps.
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

    @property
    def slug(self) -> str:
        """The name of its file."""
        k = self.k if self.method == "fomoh_kd" else ""
        rate = "self-tuned" if self.learning_rate is None else f"{self.learning_rate:g}"
        step = "-step" if self.schedule == "step" else ""
        return (
            f"{self.problem}-{self.method}{k}-{rate}{step}"
            f"-batch{self.batch_size}-steps{self.steps}-seed{self.seed}"
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of a run. None stands for a number that is not finite.

    Attributes:
      run: the configuration.
      steps: taken: whole epochs, or up to where it was seen to diverge.
      diverged: a loss was not finite, or ten times the first after the tenth step.
      first_loss: of the first minibatch, before any step.
      largest_loss: of a minibatch after the tenth step.
      train_loss, train_accuracy, test_loss, test_accuracy: at the end.
      seconds: in all, compilation included if it was the first of its kind.
      milliseconds_per_step: median, without compilation.
      steps_per_bin, curve: minibatch losses, the mean of each so many steps.
      environment: what it ran on.
    """

    run: Run
    steps: int
    diverged: bool
    first_loss: float | None
    largest_loss: float | None
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    milliseconds_per_step: float
    steps_per_bin: int
    curve: list[float | None]
    environment: str = ""

    def to_json(self) -> str:
        """One line a field, so that a folder of them can be read and compared."""
        fields = dataclasses.asdict(self)
        lines = (
            f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
            for name, value in fields.items()
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"run": Run(**fields["run"])})


def path(folder: Path, run: Run) -> Path:
    """Where the result of a run is kept."""
    return folder / f"{run.slug}.json"


def save(folder: Path, result: Result) -> None:
    """Write a result whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = path(folder, result.run)
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(result.to_json())
    draft.replace(target)


def load_all(folder: Path) -> list[Result]:
    """Every result that is kept, in the order of the names."""
    return [
        Result.from_json(file.read_text()) for file in sorted(folder.glob("*.json"))
    ]
