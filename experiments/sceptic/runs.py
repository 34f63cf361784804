"""The runs of one method on one problem, for so much time each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.minimisation import take_step
from experiments.records import Record, append, by_run, number_or_none
from experiments.sceptic.clock import Clock, make_forward
from experiments.sceptic.contenders import CONTENDERS, Contender, rates_of
from experiments.sceptic.problem import Problem

# The loss is evaluated when the time has grown by this ratio since the last evaluation,
# but at this number of points of a run at least.
RATIO, POINTS = 1.5, 16


@dataclasses.dataclass(frozen=True)
class Run:
    """The configuration of a run: all that its result depends on."""

    problem: str
    method: str
    rate: float | None
    seed: int
    passes: int


class Course:
    """The validation losses of a run, and the parameters that it results in.

    Attributes:
      curve: forward passes' times, steps, and the losses then.
      result: the last parameters or, if the problem stops early, those of the least
        loss.
    """

    def __init__(self, problem: Problem, clock: Clock):
        self._problem, self._clock, self._least = problem, clock, np.inf
        self.curve: list[tuple[float, int, float | None]] = []
        self.result: Any = None

    def look(self, params: Any, steps: int) -> float:
        """The validation loss after so many steps, which is noted."""
        loss = self._problem.evaluate(params, "validation")["loss"]
        self.curve.append((round(self._clock.passes, 1), steps, number_or_none(loss)))
        is_first, stops_early = len(self.curve) == 1, self._problem.stops_early
        if is_first or not stops_early or loss < self._least:
            self.result, self._least = params, loss
        return loss


class Trials:
    """A method on a problem, compiled once for all its learning rates and seeds.

    It does not use ``experiments.training.Trainer``: a run lasts for so many forward
    passes' time instead of so many epochs, a compiled stretch has as many steps as that
    time allows, batches are drawn with replacement, and the learning rate is an
    argument of the program.

    Attributes:
      counts: ``flops``: of a step, as the compiler counts them, over those of a forward
        pass (of a branch the one with more, of a loop one iteration);
        ``temporary_bytes`` of a step and ``forward_bytes`` of a forward pass;
        ``compile_seconds``.
    """

    def __init__(self, contender: Contender, problem: Problem):
        self.contender, self.problem = contender, problem
        params, state = self.begin(seed=0, rate=1.0)
        self.clock = Clock(problem, params)
        given = params, state, jax.random.key(0), 1.0, 1
        self.clock.restart()
        lowered = jax.jit(self._steps).lower(*given)
        self.steps = self.clock.timed(lowered.compile)
        of_one = lambda params, key: make_forward(problem)(params, key, 1)
        forward = jax.jit(of_one).lower(params, jax.random.key(0)).compile()
        flops = lambda compiled: (compiled.cost_analysis() or {}).get("flops", np.nan)
        self.counts = {
            "flops": round(flops(self.steps) / flops(forward), 2),
            "temporary_bytes": self.steps.memory_analysis().temp_size_in_bytes,
            "forward_bytes": forward.memory_analysis().temp_size_in_bytes,
            "compile_seconds": round(self.clock.seconds, 1),
        }

    def begin(self, seed: int, rate: float | None) -> tuple[Any, Any]:
        """Parameters and state, with the keys of that seed."""
        params = self.problem.init(seed)
        state = self.contender.make(rate, self.problem, params).init(params)
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        seeded = lambda x: jax.random.fold_in(x, seed) if is_key(x) else x
        return params, jax.tree.map(seeded, jax.tree.map(jnp.asarray, state))

    def _steps(self, params, state, key, rate, count):
        problem = self.problem
        of_method = problem.loss_of_one
        if self.contender.rematerialised:
            of_method = problem.rematerialised
        tx = self.contender.make(rate, problem, params)

        def step(i, carry):
            batch = problem.sample(jax.random.fold_in(key, i))
            return take_step(tx, *carry, value_fn=of_method, batch=batch)

        if problem.in_loop:
            return jax.lax.fori_loop(0, count, step, (params, state))
        return step(0, (params, state))

    def execute(self, run: Run) -> Record:
        """Train for so many forward passes' time, or until the loss is not finite.

        Returns:
          The record that is kept. ``curve`` has forward passes' times, steps and the
          validation losses then; ``validation`` and ``test`` are at the end, or where
          that loss was least if the problem stops early. Compiling and evaluating take
          no time.
        """
        problem = self.problem
        course = Course(problem, self.clock)
        steps = self._train(run, course)
        end = lambda split: {
            name: number_or_none(x)
            for name, x in problem.evaluate(course.result, split).items()
        }
        return {
            "run": dataclasses.asdict(run),
            **self.counts,
            "steps": steps,
            "seconds": round(self.clock.seconds, 2),
            "curve": course.curve,
            "stops_early": problem.stops_early,
            "validation": end("validation"),
            "test": end("test"),
            "environment": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        }

    def _train(self, run: Run, course: Course) -> int:
        """Trains until the time is over or the loss is good enough or not finite.

        Returns:
          The number of steps.
        """
        problem, clock = self.problem, self.clock
        params, state = self.begin(run.seed, run.rate)
        rate = 1.0 if run.rate is None else float(run.rate)
        key = jax.random.fold_in(jax.random.key(1), run.seed)
        # So that nothing is made for the first time when it counts.
        jax.block_until_ready(self.steps(params, state, key, rate, 1))
        clock.restart()
        target = -np.inf if problem.target is None else problem.target
        count, done, loss = 1, 0, course.look(params, 0)
        following, stretch = 0.0, run.passes / POINTS / 8
        while clock.passes < run.passes and target < loss < np.inf:
            own, before = jax.random.fold_in(key, done), clock.passes
            params, state = clock.timed(self.steps, params, state, own, rate, count)
            done += count
            if problem.in_loop:
                speed = count / (clock.passes - before)
                longest = min(stretch, max(following - clock.passes, stretch / 8))
                count = max(1, int(speed * longest))
            if clock.passes >= min(run.passes, following):
                loss = course.look(params, done)
                longer = min(RATIO * clock.passes, clock.passes + 8 * stretch)
                following = max(longer, clock.passes + stretch / 4)
        return done


def run_all(
    name: str,
    method: str,
    problem: Problem,
    passes: int,
    seeds: int,
    file: Path,
    is_over: Callable[[], bool],
) -> None:
    """The runs of a method that are not kept yet, until the time is over.

    They are every learning rate with seed 0, one more if the best is the first or the
    last of them, and the best with the other seeds.
    """
    trials: Trials | None = None

    def records(runs: list[Run]) -> list[Record]:
        nonlocal trials
        kept = load(file)
        for run in runs:
            if run in kept or is_over():
                continue
            trials = trials or Trials(CONTENDERS[method], problem)
            kept[run] = trials.execute(run)
            append(file, kept[run])
            print(f"{run}: {kept[run]['validation']}", flush=True)
        return [kept[run] for run in runs if run in kept]

    run = lambda rate, seed: Run(name, method, rate, seed, passes)
    rates = rates_of(method, problem)
    tried = records([run(rate, 0) for rate in rates])
    if len(tried) < len(rates):
        return
    rate = best(tried, problem.target)["run"]["rate"]
    if rate is not None and rate != rates[1]:
        beyond = rate / 3 if rate == rates[0] else 3 * rate
        if not (further := records([run(beyond, 0)])):
            return
        rate = best(tried + further, problem.target)["run"]["rate"]
    records([run(rate, seed) for seed in range(1, seeds)])


def best(records: list[Record], target: float | None = None) -> Record:
    """The one with the least validation loss at its end; any, if all diverged.

    If several have reached the target, the fastest of them.
    """

    def badness(record):
        loss = record["validation"]["loss"]
        if loss is None:
            return np.inf, 0.0
        if target is not None and loss <= target:
            return target, record["curve"][-1][0]
        return loss, 0.0

    return min(records, key=badness)


def load(file: Path) -> dict[Run, Record]:
    """The records that are kept, by their runs."""
    return by_run(file, lambda record: Run(**record["run"]))
