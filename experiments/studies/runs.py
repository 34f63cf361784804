"""What a run is, what comes out of it, and the file that keeps it."""

import dataclasses
import json
from pathlib import Path


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
        """Its name."""
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


def load_all(file: Path) -> list[Result]:
    """Every result that is kept, a line each, in the order of the names of the runs."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    # A line without an end was being written when the study was stopped.
    kept = [json.loads(line) for line in lines if line.endswith("\n")]
    results = [Result(**fields | {"run": Run(**fields["run"])}) for fields in kept]
    each = {result.run: result for result in results}  # of two studies at once
    return sorted(each.values(), key=lambda result: result.run.slug)


def save(file: Path, result: Result) -> None:
    """Add a line with a result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dataclasses.asdict(result), allow_nan=False).encode()
    with file.open("ab+") as lines:
        size = lines.tell()
        lines.seek(max(0, size - 1))
        if size and lines.read() != b"\n":
            lines.truncate(file.read_bytes().rfind(b"\n") + 1)
        lines.write(line + b"\n")
