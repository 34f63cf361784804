"""Do the runs that have not been done yet."""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax

from experiments import methods
from experiments.data import Dataset
from experiments.models import MODELS
from experiments.studies.runs import Result, Run, load_all, save
from experiments.training import Method, make_epoch, make_evaluation, train

POINTS = 200  # of a curve
CHECKS = 50  # for divergence in a run: each waits for the device


def run_all(runs: Iterable[Run], file: Path, data: Dataset) -> int:
    """Do and keep the runs that are not in the file; returns how many they were.

    Runs that differ by the seed alone and follow one another are compiled once.
    """
    runs, done = list(runs), 0
    kept = {result.run for result in load_all(file)}
    numbered = zip(itertools.count(1), runs)
    for kind, group in itertools.groupby(numbered, lambda x: replace(x[1], seed=0)):
        model, method = MODELS[kind.problem], make_method(kind)
        epoch = make_epoch(model, method, kind.batch_size)
        evaluate = make_evaluation(model)
        for number, run in group:
            if run in kept:
                continue
            result = execute(run, model, method, epoch, evaluate, data)
            save(file, result)
            kept.add(run)
            done += 1
            print(f"[{number}/{len(runs)}] {describe(result)}", flush=True)
    print(f"{done} of {len(runs)} runs done, the others were kept.", flush=True)
    return done


def make_method(run: Run) -> Method:
    """The optimiser of a run, with its schedule."""
    rate: optax.ScalarOrSchedule | None = run.learning_rate
    if run.schedule == "step":
        rate = optax.piecewise_constant_schedule(rate, {2 * run.steps // 3: 0.1})
    return methods.make_method(run.method, rate, run.k)


def execute(
    run: Run,
    model: nn.Module,
    method: Method,
    epoch: Callable,
    evaluate: Callable,
    data: Dataset,
) -> Result:
    """Train to the end, or until it has diverged."""
    start = last = time.perf_counter()
    per_epoch = len(data.train.labels) // run.batch_size
    epochs = -(-run.steps // per_epoch)
    chunk = -(-epochs // CHECKS)
    losses, times, waiting, diverged = np.zeros(0), [], [], False
    for number, progress in enumerate(
        train(model, method, epoch, data.train, epochs, run.seed), 1
    ):
        waiting.append(progress.losses)
        if number % chunk and number != epochs:
            continue
        fresh = np.concatenate([np.asarray(x, np.float64) for x in waiting])
        waiting, losses = [], np.concatenate([losses, fresh])
        last, before = time.perf_counter(), last
        times.append((last - before) / len(fresh))
        if diverged := has_diverged(losses):
            break
    # The last step comes after the last minibatch loss: it counts too.
    train_loss, train_accuracy = map(float, evaluate(progress.params, *data.train))
    test_loss, test_accuracy = map(float, evaluate(progress.params, *data.test))
    diverged = diverged or has_diverged(np.append(losses, train_loss))
    steps_per_bin = -(-epochs * per_epoch // POINTS)
    device = jax.devices()[0]
    return Result(
        run=run,
        steps=len(losses),
        diverged=diverged,
        first_loss=number_or_none(losses[0]),
        largest_loss=number_or_none(after_start(losses).max()),
        train_loss=number_or_none(train_loss),
        train_accuracy=number_or_none(train_accuracy),
        test_loss=number_or_none(test_loss),
        test_accuracy=number_or_none(test_accuracy),
        seconds=round(time.perf_counter() - start, 2),
        # The first time includes the compilation.
        milliseconds_per_step=number_or_none(1e3 * np.median(times[1:] or times)),
        steps_per_bin=steps_per_bin,
        curve=thin(losses, steps_per_bin),
        environment=f"{device.device_kind}, jax {jax.__version__}",
    )


def after_start(losses: np.ndarray) -> np.ndarray:
    """Without the first ten, in which a random start settles."""
    return losses[10:] if len(losses) > 10 else losses[-1:]


def has_diverged(losses: np.ndarray) -> bool:
    """A loss is not finite, or ten times the first after the tenth step."""
    finite = np.isfinite(losses).all()
    return bool(not finite or after_start(losses).max() > 10 * losses[0])


def thin(losses: np.ndarray, steps_per_bin: int) -> list[float | None]:
    """The mean of each so many steps; the last bin may hold fewer."""
    starts = np.arange(0, len(losses), steps_per_bin)
    sizes = np.diff(np.append(starts, len(losses)))
    return [number_or_none(x) for x in np.add.reduceat(losses, starts) / sizes]


def number_or_none(x: float) -> float | None:
    """Six digits, which is what float32 has; JSON knows no infinity."""
    return float(f"{x:.6g}") if np.isfinite(x) else None


def describe(result: Result) -> str:
    """A line for the log."""
    if result.diverged:
        end = f"diverged within {result.steps} steps"
    else:
        end = (
            f"train loss {result.train_loss:.4f}, "
            f"test accuracy {result.test_accuracy:.3f}"
        )
    return f"{result.run.slug}: {end}, {result.seconds:.1f} s"
