"""Train a classifier of handwritten digits without a backward pass.

    python -m experiments.digits                                # softmax regression
    python -m experiments.digits --model cnn --k 3 --steps 150  # the paper's CNN
    python -m experiments.digits --method sgd --seeds 5         # a reference

Writes ``metrics.jsonl`` and ``curves.png`` into ``runs/digits/…`` and prints a table.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from tqdm import tqdm

from experiments import methods, plotting
from experiments.data import Dataset, load_mnist, load_small
from experiments.models import MODELS
from experiments.training import make_epoch, make_evaluation, train


@dataclasses.dataclass(frozen=True)
class Config:
    """Softmax regression or the paper's CNN on handwritten digits."""

    method: Literal["fgd", "fomoh", "fomoh_kd", "fomoh_bp", "sgd", "adam"] = "fomoh_kd"
    """The optimiser; the last three backpropagate."""
    k: int = 10
    """Directions of fomoh_kd."""
    model: Literal["softmax", "cnn"] = "softmax"
    """7,850 or 431,080 parameters."""
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    """By default one that was found by experiment for the method, the model and k."""
    milestone: int | None = None
    """Step at which the learning rate is multiplied by gamma; by default never."""
    gamma: float = 0.1
    """Factor at the milestone."""
    batch_size: int = 1024
    steps: int = 2000
    """Rounded up to whole epochs."""
    evaluate_every: int = 50
    """Steps between evaluations on the test images, rounded to whole epochs."""
    seeds: int = 1
    """Number of runs, from seed 0 on."""
    data: Literal["small", "mnist"] = "small"
    """The 5,000 digits that are installed, or MNIST from --data-dir."""
    data_dir: Path = Path("data/mnist")
    """The four IDX files of MNIST; downloaded if they are not there."""
    out: Path = Path("runs/digits")
    """A folder for the results; a run makes one of its own in it."""


def main(config: Config) -> None:
    """Run all the seeds, and write what came out."""
    try:
        data = load_small() if config.data == "small" else load_mnist(config.data_dir)
    except RuntimeError as error:  # it says what to do; a traceback would hide it
        raise SystemExit(str(error)) from None
    per_epoch = len(data.train.labels) // config.batch_size
    if per_epoch < 1 or min(config.steps, config.seeds, config.k) < 1:
        raise SystemExit(
            f"--batch-size must be at most {len(data.train.labels)}, the number of "
            "training images, and --steps, --seeds and --k at least 1."
        )
    name = f"{config.method}{config.k if config.method == 'fomoh_kd' else ''}"
    folder = config.out / f"{config.model}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(dataclasses.asdict(config), default=str, indent=2) + "\n"
    )
    with (folder / "metrics.jsonl").open("w") as log:
        runs = run_all(config, data, per_epoch, log)
    draw(config, runs, folder / "curves.png")
    print(closing_table(name, config, runs))
    print(f"\nmetrics: {folder / 'metrics.jsonl'}\ncurves:  {folder / 'curves.png'}")


def learning_rate(config: Config) -> optax.ScalarOrSchedule:
    """A number, or the step schedule that was asked for."""
    rate = config.learning_rate
    if rate is None:
        rate = methods.default_learning_rate(config.model, config.method, config.k)
    if config.milestone is None:
        return rate
    return optax.piecewise_constant_schedule(rate, {config.milestone: config.gamma})


def run_all(
    config: Config, data: Dataset, per_epoch: int, log: TextIO
) -> list[list[dict[str, Any]]]:
    """The metrics of every seed; compiled once, logged as they come."""
    model = MODELS[config.model]
    method = methods.make_method(config.method, learning_rate(config), config.k)
    epoch = make_epoch(model, method, config.batch_size)
    evaluate = make_evaluation(model)
    epochs = -(-config.steps // per_epoch)
    every = max(1, config.evaluate_every // per_epoch)
    runs = []
    with tqdm(total=epochs * per_epoch * config.seeds, unit="step") as bar:
        for seed in range(config.seeds):
            progress = train(model, method, epoch, data.train, epochs, seed)
            records = list(
                _watch(progress, evaluate, data, epochs, every, seed, bar, log)
            )
            runs.append(records)
    return runs


def _watch(
    progress: Iterator[Any],
    evaluate: Any,
    data: Dataset,
    epochs: int,
    every: int,
    seed: int,
    bar: tqdm,
    log: TextIO,
) -> Iterator[dict[str, Any]]:
    """Evaluate now and then, show it on the bar, and write a line."""
    start, step = time.perf_counter(), 0
    for number, state in enumerate(progress, 1):
        losses = np.asarray(state.losses)
        step += len(losses)
        bar.update(len(losses))
        if number % every and number != epochs and number != 1:
            continue
        jax.block_until_ready(state.params)
        seconds = time.perf_counter() - start
        test_loss, test_accuracy = map(float, evaluate(state.params, *data.test))
        record = {
            "seed": seed,
            "epoch": number,
            "step": step,
            "seconds": round(seconds, 3),
            "batch_loss": float(losses.mean()),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
        if number == epochs:
            train_loss, train_accuracy = map(float, evaluate(state.params, *data.train))
            record |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
        log.write(json.dumps(record) + "\n")
        log.flush()
        bar.set_postfix(
            seed=seed,
            loss=f"{record['batch_loss']:.3f}",
            accuracy=f"{test_accuracy:.3f}",
        )
        yield record


def draw(config: Config, runs: list[list[dict[str, Any]]], path: Path) -> None:
    """Loss and accuracy against steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    steps = np.array([record["step"] for record in runs[0]])
    curve = lambda key: np.array([[record[key] for record in run] for run in runs])
    plotting.plot_seeds(left, steps, curve("batch_loss"), label="training (minibatch)")
    plotting.plot_seeds(left, steps, curve("test_loss"), label="test")
    plotting.plot_seeds(right, steps, curve("test_accuracy"), label="test")
    left.set(xlabel="step", ylabel="cross-entropy", yscale="log")
    right.set(xlabel="step", ylabel="test accuracy", ylim=(None, 1))
    left.legend()
    left.grid(alpha=0.3, which="both")
    right.grid(alpha=0.3)
    k = f", k = {config.k}" if config.method == "fomoh_kd" else ""
    figure.suptitle(
        f"{config.model}: {config.method}{k}, batch {config.batch_size}, "
        f"{config.seeds} seed{'s' * (config.seeds > 1)}"
    )
    plotting.save(figure, path)


def closing_table(name: str, config: Config, runs: list[list[dict[str, Any]]]) -> str:
    """The end of every run, as mean ± standard deviation over the seeds."""
    last = [run[-1] for run in runs]
    show = lambda key, digits=3: plotting.mean_and_deviation(
        np.array([record[key] for record in last]), digits
    )
    rate = config.learning_rate
    if rate is None:
        rate = methods.default_learning_rate(config.model, config.method, config.k)
    return plotting.table(
        {
            "method": [name],
            "learning rate": [f"{rate:g}"],
            "steps": [str(last[0]["step"])],
            "train loss": [show("train_loss")],
            "train accuracy": [show("train_accuracy")],
            "test loss": [show("test_loss")],
            "test accuracy": [show("test_accuracy")],
            "seconds": [show("seconds", 1)],
        }
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
