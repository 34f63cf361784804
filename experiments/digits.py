"""Train a classifier of handwritten digits, or of small images, with no backward pass.

    python -m experiments.digits                                # softmax regression
    python -m experiments.digits --model cnn --k 3 --steps 150  # the paper's CNN
    python -m experiments.digits --method sgd --seeds 5         # a reference
    python -m experiments.digits --resume runs/digits/FOLDER    # go on with a run
    python -m experiments.digits --processes 2 --coordinator localhost:9876 \\
        --process-id 0                 # and with 1: two that share each batch

Writes ``metrics.jsonl``, ``curves.png``, the last parameters and checkpoints into
``runs/digits/…`` and prints a table. A run that was stopped, by whatever, goes on with
``--resume``, and ends as if it had not been stopped.
"""

import contextlib
import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NoReturn

import flax.linen as nn
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from tqdm import tqdm

from experiments import interruption, methods, parallel, plotting
from experiments.checkpoints import Checkpoint, write_whole
from experiments.data import Dataset, load
from experiments.models import MODELS
from experiments.output import NoOutput, Output, Record
from experiments.training import (
    Method,
    Standing,
    begin,
    make_epoch,
    make_evaluation,
    train,
)

# How a run is run, which may change when it goes on; the other options are what it is.
HOW = {"processes", "coordinator", "process_id"}
# These may differ between its processes.
WHERE = {"out", "data_dir", "resume"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Softmax regression or a convolutional network on small images."""

    method: Literal["fgd", "fomoh", "fomoh_kd", "fomoh_bp", "sgd", "adam"] = "fomoh_kd"
    """The optimiser; the last three backpropagate."""
    k: int = 10
    """Directions of fomoh_kd."""
    model: Literal["softmax", "cnn", "vgg"] = "softmax"
    """7,850 or 431,080 parameters on digits; vgg has 814,570 on CIFAR-10."""
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    """By default fomoh_kd tunes itself, and the others take one found by experiment."""
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
    data: Literal["small", "mnist", "cifar10", "synthetic"] = "small"
    """The 5,000 digits that are installed, MNIST or CIFAR-10 from --data-dir, or
    made-up images of the shape of CIFAR-10's."""
    data_dir: Path | None = None
    """The files of MNIST or of CIFAR-10 (binary version), downloaded if they are not
    there; by default data/mnist or data/cifar10."""
    out: Path = Path("runs/digits")
    """A folder for the results; a run makes one of its own in it."""
    checkpoint_every: int = 500
    """Steps between checkpoints, rounded to whole epochs."""
    resume: Path | None = None
    """The folder of a run to go on with, under the options that are in it."""
    processes: int = 1
    """Processes that share every minibatch, each started with this same command."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the others find it."""
    process_id: int | None = None
    """Which of the processes this one is, from 0 on."""


class Lengths(NamedTuple):
    """The length of a run in epochs.

    Attributes:
      steps: in an epoch.
      epochs: of each seed.
      evaluate_every, checkpoint_every: epochs from one to the next.
    """

    steps: int
    epochs: int
    evaluate_every: int
    checkpoint_every: int


def parse(arguments: Sequence[str] | None = None) -> Config:
    """The options of a new run, or with ``--resume`` those that the run had."""
    ask = lambda **default: tyro.cli(
        Config, args=arguments, description=__doc__, **default
    )
    config = ask()
    if config.resume is None:
        return config
    # What is given beside --resume differs from these defaults only if it contradicts.
    return ask(default=read_config(config.resume))


def main(config: Config) -> None:
    """Run all the seeds, or what is left of them, and write what came out."""
    if config.resume is not None:
        check_agreement(config, read_config(config.resume))
    check_processes(config)
    with joined(config):
        try:
            data = load(config.data, config.data_dir)
        except RuntimeError as error:  # it says what to do; a traceback would hide it
            raise SystemExit(str(error)) from None
        plan = lengths_of(config, data)
        writes = config.process_id in (None, 0)
        folder = (config.resume or make_folder(config)) if writes else None
        with interruption.postponed() as asked:
            runs = run_all(config, data, plan, folder, asked)
        if folder is not None:
            show(config, folder, runs)


def show(config: Config, folder: Path, runs: list[list[Record]]) -> None:
    """Draw the curves, and print a table."""
    partial = folder / "partial.png"
    draw(config, runs, partial)
    partial.replace(folder / "curves.png")
    print(closing_table(full_name(config), config, runs))
    print(f"\nmetrics: {folder / 'metrics.jsonl'}\ncurves:  {folder / 'curves.png'}")


def check_processes(config: Config) -> None:
    """The options about processes make sense together."""
    n, number = config.processes, config.process_id
    if n < 1:
        raise SystemExit(f"--processes must be at least 1; got {n}.")
    if n > 1 and (config.coordinator is None or number is None):
        raise SystemExit(
            f"--processes {n} needs --coordinator HOST:PORT of process 0 and a "
            f"--process-id from 0 to {n - 1}: start each process with the same command "
            "and an id of its own."
        )
    if number is not None and not (n > 1 and 0 <= number < n):
        raise SystemExit(
            f"--process-id must be from 0 to one less than --processes, which is the "
            f"number of all processes, from 2 on; got {number} and {n}."
        )
    try:
        parallel.check_batch_size(config.batch_size, n)  # at least a device in each
    except ValueError as error:
        raise SystemExit(f"--batch-size: {error}") from None


def joined(config: Config) -> contextlib.AbstractContextManager[None]:
    """Inside, this is one of the processes that it is said to be."""
    if config.coordinator is None or config.process_id is None:
        return contextlib.nullcontext()
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Config)
        if field.name not in HOW | WHERE
    }
    return parallel.joined(
        config.coordinator, config.processes, config.process_id, json.dumps(options)
    )


def flag(name: str) -> str:
    """Of an option, as it is given."""
    return f"--{name.replace('_', '-')}"


def lengths_of(config: Config, data: Dataset) -> Lengths:
    """Steps in whole epochs; or an end with what is wrong with the options."""
    images = len(data.train.labels)
    steps = images // config.batch_size if config.batch_size > 0 else 0
    counts = (config.steps, config.seeds, config.k, config.checkpoint_every)
    if steps < 1 or min(counts) < 1:
        raise SystemExit(
            f"--batch-size must be at most {images}, the number of "
            "training images, and --steps, --seeds and --k at least 1 "
            "(--checkpoint-every too)."
        )
    whole = lambda every: max(1, every // steps)
    return Lengths(
        steps,
        -(-config.steps // steps),
        whole(config.evaluate_every),
        whole(config.checkpoint_every),
    )


def full_name(config: Config) -> str:
    """The method, with its k where it has one."""
    return f"{config.method}{config.k if config.method == 'fomoh_kd' else ''}"


def make_folder(config: Config) -> Path:
    """A new folder for the run, with its options in it."""
    name = f"{config.model}-{full_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = config.out / name
    folder.mkdir(parents=True)
    options = dataclasses.asdict(config)
    for name in ("resume", "coordinator", "process_id"):
        del options[name]
    write_whole(
        folder / "config.json", json.dumps(options, default=str, indent=2) + "\n"
    )
    return folder


def read_config(folder: Path) -> Config:
    """The options of the run in that folder."""
    path = folder / "config.json"
    try:
        options = json.loads(path.read_text())
        for name in ("data_dir", "out"):
            if options[name] is not None:
                options[name] = Path(options[name])
        return Config(**options, resume=folder)
    except FileNotFoundError:
        raise SystemExit(f"--resume: {folder} holds no run: no {path}.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"--resume: {path} cannot be read: {error}.") from None


def check_agreement(config: Config, saved: Config) -> None:
    """A run goes on under the options that it was started with, or not at all."""
    contradictions = [
        f"{flag(field.name)} {asked} (the run has {had})"
        for field in dataclasses.fields(Config)
        if field.name not in HOW
        and (asked := getattr(config, field.name))
        != (had := getattr(saved, field.name))
    ]
    if contradictions:
        raise SystemExit(
            f"--resume goes on with the options in {config.resume / 'config.json'}; "
            f"leave out {', '.join(contradictions)}."
        )


def learning_rate(config: Config) -> optax.ScalarOrSchedule | None:
    """A number, the step schedule that was asked for, or ``None`` for self-tuning."""
    rate = config.learning_rate
    if rate is None:
        rate = methods.default_learning_rate(config.model, config.method)
    if config.milestone is None:
        return rate
    if rate is None:
        raise SystemExit(
            "--milestone cuts a learning rate, and fomoh_kd without one tunes itself: "
            "give --learning-rate, or leave --milestone out."
        )
    return optax.piecewise_constant_schedule(rate, {config.milestone: config.gamma})


def run_all(
    config: Config,
    data: Dataset,
    plan: Lengths,
    folder: Path | None,
    asked: interruption.Interruption,
) -> list[list[Record]]:
    """The metrics of every seed; compiled once, logged as they come.

    From the last checkpoint in the folder on, if there is one. An interruption that was
    asked for is honoured at the end of an epoch. Without a folder nothing is written:
    another process does that.
    """
    model = MODELS[config.model]
    method = methods.make_method(config.method, learning_rate(config), config.k)
    several = config.processes > 1
    common = as_first_has_it if several else lambda last: last
    epoch = make_shared_epoch(config, method)
    evaluate = make_evaluation(model)
    with NoOutput() if folder is None else Output(folder) as output:
        fresh = begin(model, method, data.train, seed=0)
        last = common(output.restore(fresh) or Checkpoint(0, fresh, 0.0, 0, 0))
        done = last.seed * plan.epochs + last.standing.epoch
        with tqdm(
            total=plan.epochs * plan.steps * config.seeds,
            initial=done * plan.steps,
            unit="step",
            disable=folder is None,
        ) as bar:
            for seed in range(last.seed, config.seeds):
                if seed != last.seed:
                    fresh = begin(model, method, data.train, seed)
                    last = common(Checkpoint(seed, fresh, 0.0, 0, 0))
                progress = _run_seed(model, method, epoch, evaluate, data, plan, last)
                for last, record in progress:
                    bar.update(plan.steps)
                    if record is not None:
                        output.write(record)
                        _show(record, bar)
                    stop = asked.signal
                    if several:  # all of them, whichever was asked
                        stop = parallel.largest(stop or 0) or None
                    epochs = last.standing.epoch
                    if (
                        stop is not None
                        or epochs % plan.checkpoint_every == 0
                        or epochs == plan.epochs
                    ):
                        output.save(seed * plan.epochs + epochs, last)
                    if stop is not None:
                        bar.close()
                        _leave(stop, folder, several)
                output.save_params(seed, last.standing.params)
        return [
            [record for record in output.records if record["seed"] == seed]
            for seed in range(config.seeds)
        ]


def make_shared_epoch(config: Config, method: Method) -> Callable:
    """An epoch in all the processes that there are."""
    mesh = parallel.make_mesh() if config.processes > 1 else None
    try:
        return make_epoch(MODELS[config.model], method, config.batch_size, mesh)
    except ValueError as error:
        raise SystemExit(f"--batch-size: {error}") from None


def as_first_has_it(last: Checkpoint) -> Checkpoint:
    """Where process 0 begins or goes on from, in every process."""
    numbers = np.int32([last.seed, last.standing.epoch])
    (seed, epoch), params, state = parallel.from_first(
        (numbers, last.standing.params, last.standing.state)
    )
    return last._replace(seed=int(seed), standing=Standing(int(epoch), params, state))


def _run_seed(
    model: nn.Module,
    method: Method,
    epoch: Callable,
    evaluate: Callable,
    data: Dataset,
    plan: Lengths,
    start: Checkpoint,
) -> Iterator[tuple[Checkpoint, Record | None]]:
    """After each epoch, where the seed's run stands, and now and then its metrics."""
    clock = time.perf_counter() - start.seconds
    first, nonfinite = start.standing.epoch + 1, start.nonfinite
    progress = train(
        model, method, epoch, data.train, plan.epochs, start.seed, start.standing
    )
    for number, state in enumerate(progress, first):
        losses = np.asarray(state.losses)
        finite = losses[np.isfinite(losses)]
        nonfinite += len(losses) - len(finite)
        seconds, record = time.perf_counter() - clock, None
        if number in (1, plan.epochs) or number % plan.evaluate_every == 0:
            test_loss, test_accuracy = map(float, evaluate(state.params, *data.test))
            record = {
                "seed": start.seed,
                "epoch": number,
                "step": number * plan.steps,
                "seconds": round(seconds, 3),
                "batch_loss": float(finite.mean()) if len(finite) else math.nan,
                "nonfinite_losses": nonfinite,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
            }
            nonfinite = 0
        if number == plan.epochs:
            train_loss, train_accuracy = map(float, evaluate(state.params, *data.train))
            record |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
        standing = Standing(number, state.params, state.state)
        yield Checkpoint(start.seed, standing, seconds, nonfinite, 0), record


def _show(record: Record, bar: tqdm) -> None:
    bar.set_postfix(
        seed=record["seed"],
        loss=f"{record['batch_loss']:.3f}",
        accuracy=f"{record['test_accuracy']:.3f}",
    )


def _leave(number: int, folder: Path | None, several: bool) -> NoReturn:
    if folder is not None:
        command = f"python -m experiments.digits --resume {shlex.quote(str(folder))}"
        if several:
            command += " --processes 1"
        print(f"Stopped. To go on:\n    {command}", file=sys.stderr)
    # As the shell reports a process that a signal ended.
    raise interruption.Stopped(128 + number)


def draw(config: Config, runs: list[list[Record]], path: Path) -> None:
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


def closing_table(name: str, config: Config, runs: list[list[Record]]) -> str:
    """The end of every run, as mean ± standard deviation over the seeds."""
    last = [run[-1] for run in runs]
    show = lambda key, digits=3: plotting.mean_and_deviation(
        np.array([record[key] for record in last]), digits
    )
    rate = config.learning_rate
    if rate is None:
        rate = methods.default_learning_rate(config.model, config.method)
    nonfinite = sum(record["nonfinite_losses"] for run in runs for record in run)
    return plotting.table(
        {
            "method": [name],
            "learning rate": ["self-tuned" if rate is None else f"{rate:g}"],
            "steps": [str(last[0]["step"])],
            "train loss": [show("train_loss")],
            "train accuracy": [show("train_accuracy")],
            "test loss": [show("test_loss")],
            "test accuracy": [show("test_accuracy")],
            "seconds": [show("seconds", 1)],
        }
        | ({"non-finite losses": [str(nonfinite)]} if nonfinite else {})
    )


if __name__ == "__main__":
    main(parse())
