"""Train a classifier of handwritten digits, or of small images.

    python -m experiments.digits                               # the paper's CNN
    python -m experiments.digits --model softmax --seeds 5     # softmax regression
    python -m experiments.digits --method fomoh_kd --k 3       # the paper's method
    python -m experiments.digits --method sgd                  # a reference
    python -m experiments.digits --resume runs/digits/FOLDER    # go on with a run
    python -m experiments.digits --processes 2 --coordinator localhost:9876 \\
        --process-id 0                 # and with 1: two that share each batch

Writes ``metrics.jsonl``, ``curves.png``, the last parameters and checkpoints into
``runs/digits/…`` and prints a table. A run that was stopped, by whatever, goes on with
``--resume``, and ends as if it had not been stopped.
"""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

from experiments import interruption, methods, parallel, plotting, study
from experiments.data import Dataset, load
from experiments.models import MODELS
from experiments.output import Output, restore
from experiments.records import Record
from experiments.training import Standing, Trainer

# The batch size and the steps of each model.
SIZES = {"softmax": (1024, 2000), "cnn": (256, 300), "vgg": (256, 90)}
# Options that may change when a run goes on; the others define the run.
HOW = {"processes", "coordinator", "process_id", "beside"}
# Options that may differ between the processes of a run.
WHERE = {"out", "data_dir", "resume"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Softmax regression or a convolutional network on small images."""

    method: Literal[
        "fomoh_ap", "fgd", "fomoh", "fomoh_kd", "fomoh_bp", "sgd", "adam"
    ] = "fomoh_ap"
    """The optimiser; the last three backpropagate."""
    blocks: int | None = 2
    """Blocks into which fomoh_ap cuts the model, or None for all. (Softmax regression
    is one block, whose gradient is that of backpropagation.)"""
    k: int = 10
    """Directions of fomoh_kd."""
    beside: bool = True
    """After fomoh_ap, also train by fomoh_kd for as long, to compare; not if there are
    several processes."""
    model: Literal["softmax", "cnn", "vgg"] = "cnn"
    """7,850 or 431,080 parameters on digits; vgg has 814,570 on CIFAR-10."""
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    """By default fomoh_kd tunes itself, and the others take one found by experiment;
    fomoh_ap has none."""
    milestone: int | None = None
    """Step from which on the learning rate is a tenth; by default never."""
    batch_size: int | None = None
    """By default 1024 for softmax, and 256."""
    steps: int | None = None
    """Rounded up to whole epochs; by default 2000 for softmax, 300 for cnn, and 90."""
    evaluate_every: int = 50
    """Steps between evaluations on the test images, rounded to whole epochs."""
    seeds: int = 1
    """Number of runs, from seed 0 on."""
    data: Literal["small", "mnist", "cifar10", "synthetic"] = "small"
    """The 5,000 digits that are installed, MNIST or CIFAR-10 from --data-dir, or
    made-up images of the shape of CIFAR-10's."""
    data_dir: Path | None = None
    """The files of MNIST or the archive of CIFAR-10 (binary version), downloaded if
    they are not there; by default data/mnist or data/cifar10."""
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


def parse(arguments: Sequence[str] | None = None) -> Config:
    """The options of a new run, or with ``--resume`` those that the run had.

    Ends the program if others are given beside ``--resume``.
    """
    ask = functools.partial(tyro.cli, Config, args=arguments, description=__doc__)
    if (folder := ask().resume) is None:
        return ask()
    saved = read_config(folder)
    config = ask(default=saved)
    flags = [
        f"--{name.replace('_', '-')} {asked} (the run has {getattr(saved, name)})"
        for name, asked in vars(config).items()
        if name not in HOW and asked != getattr(saved, name)
    ]
    if flags:
        file, others = folder / "config.json", ", ".join(flags)
        raise SystemExit(f"--resume goes on with those of {file}; leave out {others}.")
    return config


def main(config: Config) -> None:
    """Run all the seeds, or what is left of them, and write what came out."""
    config = filled(config)
    check(config)
    rows = []
    with joined(config):
        data = load(config.data, config.data_dir)
        trainer = make_trainer(config, data)
        writes = config.process_id in (None, 0)
        folder = (config.resume or make_folder(config)) if writes else None
        with interruption.postponed() as signals:
            records = run_all(config, trainer, folder, signals)
        if signals and folder is not None:
            command = f"python -m experiments.digits --resume {folder}"
            one = " --processes 1" if config.processes > 1 else ""
            print(f"Stopped. To go on:\n    {command}{one}", file=sys.stderr)
        elif folder is not None:
            frame = pd.DataFrame(records)
            plotting.save(draw(config, frame), folder / "curves.png")
            rows = [closing_row(config, frame)]
            if config.method == "fomoh_ap" and config.beside and config.processes == 1:
                seconds = frame.groupby("seed").seconds.max().mean()
                with contextlib.suppress(KeyboardInterrupt):
                    rows.append(train_beside(config, data, seconds))
            print(f"{study.table(rows)}\n\nmetrics and curves: {folder}")
    if signals:
        raise SystemExit(128 + signals[0])  # as a shell reports it


def filled(config: Config) -> Config:
    """Fills in the batch size and the steps of the model where none are given."""
    batch_size, steps = SIZES[config.model]
    return dataclasses.replace(
        config,
        batch_size=batch_size if config.batch_size is None else config.batch_size,
        steps=steps if config.steps is None else config.steps,
    )


def check(config: Config) -> None:
    """Ends the program if the options do not fit together."""
    study.at_least(1, config, "batch_size", "steps", "seeds", "k", "processes")
    study.at_least(1, config, "evaluate_every", "checkpoint_every")
    n, number = config.processes, config.process_id
    if n > 1 and (config.coordinator is None or number not in range(n)):
        raise SystemExit(
            f"--processes {n} needs --coordinator HOST:PORT of process 0 and a "
            f"--process-id from 0 to {n - 1}, one for each process."
        )
    if config.batch_size % n:  # a device in each process
        raise SystemExit(f"--batch-size must be a multiple of {n}, the processes.")
    if config.method == "fomoh_ap" and config.learning_rate is not None:
        raise SystemExit("--learning-rate is not for fomoh_ap, which has none.")
    if config.milestone is not None and learning_rate(config) is None:
        raise SystemExit(
            f"--milestone needs --learning-rate: {config.method} tunes itself."
        )


def joined(config: Config) -> contextlib.AbstractContextManager[None]:
    """A context in which this process is one of those that share the run."""
    if config.coordinator is None or config.process_id is None:
        return contextlib.nullcontext()
    shared = {k: v for k, v in vars(config).items() if k not in HOW | WHERE}
    where = config.coordinator, config.processes, config.process_id
    return parallel.joined(json.dumps(shared), *where)


def full_name(config: Config) -> str:
    """The method, with its k or its blocks where it has some."""
    size = {"fomoh_kd": config.k, "fomoh_ap": config.blocks or ""}
    return f"{config.method}{size.get(config.method, '')}"


def make_folder(config: Config) -> Path:
    """A new folder for the run, with its options in it."""
    name = f"{config.model}-{full_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = config.out / name
    folder.mkdir(parents=True)
    own = ("resume", "coordinator", "process_id")
    options = {k: v for k, v in vars(config).items() if k not in own}
    (folder / "config.json").write_text(json.dumps(options, default=str, indent=2))
    return folder


def read_config(folder: Path) -> Config:
    """The options of the run in that folder."""
    path = folder / "config.json"
    try:
        options = json.loads(path.read_text())
        paths = {k: Path(options[k]) for k in ("data_dir", "out") if options[k]}
        return Config(**options | paths, resume=folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"--resume: {path} cannot be read: {error}.") from None


def learning_rate(config: Config) -> float | None:
    """The one asked for or one found by experiment; ``None`` for self-tuning."""
    tunes_itself = config.method in ("fomoh_ap", "fomoh_kd")
    if config.learning_rate is not None or tunes_itself:
        return config.learning_rate
    return methods.LEARNING_RATES[config.model][config.method]


def make_trainer(config: Config, data: Dataset) -> Trainer:
    """The model and the optimiser, in all the processes that there are."""
    rate = learning_rate(config)
    method = methods.make_method(
        config.method, rate, config.k, config.milestone, config.blocks
    )
    mesh = parallel.make_mesh() if config.processes > 1 else None
    return Trainer(MODELS[config.model], method, data, config.batch_size, mesh)


def run_all(
    config: Config, trainer: Trainer, folder: Path | None, signals: list[int]
) -> list[Record]:
    """Trains with every seed, and returns the metrics.

    A resumed run starts at its last checkpoint. It ends with the epoch in which a
    signal comes to any process. Without a folder nothing is written: another process
    does that.
    """
    epochs = -(-config.steps // trainer.steps)
    last = trainer.begin(0)
    if config.resume is not None:
        last = restore(config.resume, last)
    output = None if folder is None else Output(folder, last.records)
    size = {
        "total": config.seeds * epochs * trainer.steps,
        "initial": (last.seed * epochs + last.epoch) * trainer.steps,
    }
    with tqdm(**size, unit="step", disable=output is None) as bar:
        for seed in range(last.seed, config.seeds):
            start = standing = last if seed == last.seed else trainer.begin(seed)
            clock, nonfinite = time.perf_counter() - start.seconds, start.nonfinite
            for standing in trainer.train(epochs, start):
                nonfinite += int(np.sum(~np.isfinite(standing.losses)))
                seconds = time.perf_counter() - clock
                standing = standing._replace(seconds=seconds, nonfinite=nonfinite)
                bar.update(trainer.steps)
                if config.processes > 1:
                    signals[:] = parallel.any_of(signals)
                if output is not None:
                    keep(config, trainer, output, standing, bool(signals))
                    shown = ("seed", "batch_loss", "test_accuracy")
                    bar.set_postfix({k: output.records[-1][k] for k in shown})
                if signals:
                    break
            if signals:
                break
            if output is not None:
                output.save_params(seed, standing.params)
    return [] if output is None else output.close()


def keep(
    config: Config, trainer: Trainer, output: Output, standing: Standing, stop: bool
) -> None:
    """Writes a record, a checkpoint, both or neither, as is due after an epoch."""
    epoch, epochs = standing.epoch, -(-config.steps // trainer.steps)
    due = lambda every: epoch % max(1, every // trainer.steps) == 0 or epoch == epochs
    if epoch == 1 or due(config.evaluate_every):
        losses = np.asarray(standing.losses)
        finite = losses[np.isfinite(losses)]
        mine = [r for r in output.records if r["seed"] == standing.seed]
        before = sum(record["nonfinite_losses"] for record in mine)
        record = {
            "seed": standing.seed,
            "epoch": epoch,
            "step": epoch * trainer.steps,
            "seconds": round(standing.seconds, 3),
            "batch_loss": float(finite.mean()) if len(finite) else math.nan,
            "nonfinite_losses": standing.nonfinite - before,
            **trainer.evaluate(standing.params, "test"),
        }
        if epoch == epochs:
            record |= trainer.evaluate(standing.params, "train")
        output.write(record)
    if stop or due(config.checkpoint_every):
        output.save(standing.seed * epochs + epoch, standing)


def draw(config: Config, frame: pd.DataFrame) -> plt.Figure:
    """Loss and accuracy against steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    drawn = {"batch_loss": left, "test_loss": left, "test_accuracy": right}
    for column, axes in drawn.items():
        label = "training (minibatch)" if column == "batch_loss" else "test"
        curves = frame.pivot(index="seed", columns="step", values=column)
        x = curves.columns.to_numpy()
        plotting.plot_seeds(axes, x, curves.to_numpy(), label=label)
    left.set(xlabel="step", ylabel="cross-entropy", yscale="log")
    right.set(xlabel="step", ylabel="test accuracy", ylim=(None, 1))
    left.legend()
    left.grid(alpha=0.3, which="both")
    right.grid(alpha=0.3)
    sizes = {"fomoh_kd": f", k = {config.k}", "fomoh_ap": f", {config.blocks} blocks"}
    figure.suptitle(
        f"{config.model}: {config.method}{sizes.get(config.method, '')}, "
        f"batch {config.batch_size}, "
        f"{config.seeds} seed{'s' * (config.seeds > 1)}"
    )
    return figure


def closing_row(config: Config, frame: pd.DataFrame) -> dict[str, Any]:
    """The last metrics as mean ± standard deviation over the seeds."""
    last = frame.drop_duplicates("seed", keep="last")
    rate = learning_rate(config)
    row = {
        "method": full_name(config),
        "learning rate": "self-tuned" if rate is None else f"{rate:g}",
        "steps": last.step.max(),
    }
    ends = "train_loss", "train_accuracy", "test_loss", "test_accuracy"
    for name in (*ends, "seconds"):
        digits = 1 if name == "seconds" else 3
        row[name.replace("_", " ")] = study.mean_and_deviation(last[name], digits)
    if nonfinite := frame.nonfinite_losses.sum():
        row["non-finite losses"] = nonfinite
    return row


def train_beside(config: Config, data: Dataset, seconds: float) -> dict[str, Any]:
    """The row of fomoh_kd after as many seconds, rounded up to whole epochs.

    The seconds of its first epoch, which contain its compilation, do not count.
    """
    rival = dataclasses.replace(config, method="fomoh_kd", seeds=1)
    trainer, spent, nonfinite = make_trainer(rival, data), 0.0, 0
    last = time.perf_counter()
    with tqdm(
        total=round(seconds), unit="s", desc=f"beside, {full_name(rival)}"
    ) as bar:
        for standing in trainer.train(sys.maxsize, trainer.begin(0)):
            losses = np.asarray(standing.losses)  # waits for the device
            nonfinite += int(np.sum(~np.isfinite(losses)))
            now, last = time.perf_counter() - last, time.perf_counter()
            spent += now if standing.epoch > 1 else 0
            bar.update(min(round(spent), bar.total) - bar.n)
            bar.set_postfix({"batch_loss": float(losses.mean())})
            if spent >= seconds:
                break
    ends = trainer.evaluate(standing.params, "test")
    ends |= trainer.evaluate(standing.params, "train")
    record = {"seed": 0, "step": standing.epoch * trainer.steps, "seconds": spent}
    record["nonfinite_losses"] = nonfinite
    return closing_row(rival, pd.DataFrame([record | ends]))


if __name__ == "__main__":
    main(parse())
