"""Runs that have not been done yet are done and kept."""

import dataclasses
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import methods, records
from experiments.data import Dataset
from experiments.models import MODELS
from experiments.records import Record, number_or_none
from experiments.studies.runs import Run, load_all
from experiments.training import Trainer, make_losses


def run_all(runs: Iterable[Run], file: Path, data: Dataset) -> int:
    """Do and keep the runs that are not in the file; returns how many they were.

    Runs that differ by the seed alone and follow one another are compiled once.
    """
    kept = set(load_all(file).run)
    runs = [run for run in dict.fromkeys(runs) if run not in kept]
    numbers = itertools.count(1)
    alike = lambda run: dataclasses.replace(run, seed=0)
    for kind, group in itertools.groupby(runs, alike):
        trainer = make_trainer(kind, data)
        for run in group:
            record = execute(run, trainer)
            records.append(file, record)
            end = "diverged" if record["diverged"] else record["train_loss"]
            print(f"[{next(numbers)}/{len(runs)}] {run}: {end}", flush=True)
    print(f"{len(runs)} runs done, {len(kept)} were kept.", flush=True)
    return len(runs)


def make_trainer(run: Run, data: Dataset) -> Trainer:
    """The model and the optimiser of a run, with its schedule."""
    milestone = 2 * run.steps // 3 if run.schedule == "step" else None
    model, frozen = MODELS[run.problem], None
    if run.method == "tail":
        image, label = (jnp.asarray(x[0]) for x in data.train)
        params = jax.eval_shape(model.init, jax.random.key(0), image[None])
        _, loss_of_one = make_losses(model)
        frozen = methods.estimated(loss_of_one, params, (image, label), run.blocks)
    method = methods.make_method(
        run.method, run.learning_rate, run.k, milestone, run.blocks, frozen
    )
    return Trainer(model, method, data, run.batch_size)


def execute(run: Run, trainer: Trainer) -> Record:
    """Train to the end, or until it has diverged.

    Returns:
      The record that is kept, in which None stands for a number that is not finite.
      ``steps``: taken: whole epochs, or up to where it was seen to diverge.
      ``diverged``: a loss was not finite, or ten times the first after the tenth step.
      ``first_loss``, ``largest_loss``: of the first minibatch, before any step, and of
      those after the tenth step. ``seconds``: in all, compilation included if it was
      the first of its kind; ``milliseconds_per_step``: the median, without compilation.
      ``steps_per_bin``, ``curve``: minibatch losses, the mean of each so many steps.
    """
    start = last = time.perf_counter()
    epochs = -(-run.steps // trainer.steps)
    chunk = -(-epochs // 50)  # between checks for divergence: each waits for the device
    losses, times, waiting, diverged = np.zeros(0), [], [], False
    for standing in trainer.train(epochs, trainer.begin(run.seed)):
        waiting.append(standing.losses)
        if standing.epoch % chunk and standing.epoch != epochs:
            continue
        fresh = np.concatenate([np.asarray(x, np.float64) for x in waiting])
        waiting, losses = [], np.concatenate([losses, fresh])
        last, before = time.perf_counter(), last
        times.append((last - before) / len(fresh))
        if diverged := has_diverged(losses):
            break
    end = {
        name: number_or_none(x)
        for split in ("train", "test")
        for name, x in trainer.evaluate(standing.params, split).items()
    }
    # The last step comes after the last minibatch loss: it counts too.
    ended = np.append(losses, np.nan if (x := end["train_loss"]) is None else x)
    steps_per_bin = -(-epochs * trainer.steps // 200)  # at most 200 points a curve
    return {
        "run": dataclasses.asdict(run),
        "steps": len(losses),
        "diverged": diverged or has_diverged(ended),
        "first_loss": number_or_none(losses[0]),
        "largest_loss": number_or_none(after_start(losses).max()),
        **end,
        "seconds": round(time.perf_counter() - start, 2),
        # The first time includes the compilation.
        "milliseconds_per_step": number_or_none(1e3 * np.median(times[1:] or times)),
        "steps_per_bin": steps_per_bin,
        "curve": thin(losses, steps_per_bin),
        "environment": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    }


def after_start(losses: np.ndarray) -> np.ndarray:
    """The losses without the first ten, in which a random start settles."""
    return losses[10:] if len(losses) > 10 else losses[-1:]


def has_diverged(losses: np.ndarray) -> bool:
    """Whether a loss is not finite, or ten times the first after the tenth step."""
    finite = np.isfinite(losses).all()
    return bool(not finite or after_start(losses).max() > 10 * losses[0])


def thin(losses: np.ndarray, steps_per_bin: int) -> list[float | None]:
    """The means of bins of so many steps; the last bin may hold fewer."""
    starts = np.arange(0, len(losses), steps_per_bin)
    sizes = np.diff(np.append(starts, len(losses)))
    return [number_or_none(x) for x in np.add.reduceat(losses, starts) / sizes]
