"""One method on one problem, for so much time."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.sceptic.clock import Clock, make_forward
from experiments.sceptic.contenders import CONTENDERS, Contender
from experiments.sceptic.problem import Problem

POINTS = 16  # of a curve


@dataclasses.dataclass(frozen=True)
class Run:
    """What the result of a run depends on."""

    problem: str
    method: str
    rate: float | None
    seed: int
    passes: int


def execute(run: Run, problem: Problem) -> dict[str, Any]:
    """Train for so many forward passes' time, or until the loss is not finite.

    Returns:
      The record that is kept. ``curve`` has forward passes' times and the validation
      losses then; ``validation`` and ``test`` are at the end. ``flops``: of a step, as
      the compiler counts them, over those of a forward pass; ``temporary_bytes``: of a
      step, and ``forward_bytes`` those of a forward pass. Compiling and evaluating do
      not count.
    """
    contender = CONTENDERS[run.method]
    params = problem.init(run.seed)
    tx = contender.make(run.rate, problem, params)
    state = seeded(tx.init(params), run.seed)
    step = make_step(contender, problem, tx)
    record = counted(step, problem, params, state)
    clock = Clock(problem, params)

    def steps(params, state, key, count):
        def body(i, carry):
            return step(*carry, jax.random.fold_in(key, i))

        if problem.in_loop:
            return jax.lax.fori_loop(0, count, body, (params, state))
        return step(params, state, key)

    steps = jax.jit(steps)
    key = jax.random.fold_in(jax.random.key(1), run.seed)
    jax.block_until_ready(steps(params, state, key, 1))  # compiles
    clock.restart()
    count, done, curve = 1, 0, []

    def look() -> float:
        loss = problem.evaluate(params, "validation")["loss"]
        curve.append((round(clock.passes, 1), done, _rounded(loss)))
        return loss

    loss = look()
    while clock.passes < run.passes and np.isfinite(loss):
        own = jax.random.fold_in(key, done)
        before = clock.passes
        params, state = clock.timed(steps, params, state, own, count)
        done += count
        if problem.in_loop:  # an eighth of the time between two points at most
            speed = count / (clock.passes - before)
            count = max(1, int(speed * run.passes / POINTS / 8))
        if clock.passes >= min(run.passes, len(curve) * run.passes / POINTS):
            loss = look()
    ended = {
        split: {
            name: _rounded(x) for name, x in problem.evaluate(params, split).items()
        }
        for split in ("validation", "test")
    }
    return {
        "run": dataclasses.asdict(run),
        **record,
        "steps": done,
        "seconds": round(clock.seconds, 2),
        "curve": curve,
        **ended,
        "environment": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    }


def make_step(contender: Contender, problem: Problem, tx: Any) -> Callable:
    """``step(params, state, key) -> params, state`` on a random batch."""
    loss = problem.loss_of_one
    if contender.rematerialised:
        loss = problem.rematerialised

    def step(params, state, key):
        batch = problem.sample(key)
        updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


def counted(
    step: Callable, problem: Problem, params: Any, state: Any
) -> dict[str, Any]:
    """Operations in forward passes, and bytes of temporaries."""
    key = jax.random.key(0)
    one = jax.jit(step).lower(params, state, key).compile()
    of_one = lambda params, key: make_forward(problem)(params, key, 1)
    forward = jax.jit(of_one).lower(params, key).compile()
    flops = lambda compiled: (compiled.cost_analysis() or {}).get("flops", np.nan)
    return {
        "flops": round(flops(one) / flops(forward), 2),
        "temporary_bytes": one.memory_analysis().temp_size_in_bytes,
        "forward_bytes": forward.memory_analysis().temp_size_in_bytes,
    }


def seeded(state: Any, seed: int) -> Any:
    """The state with other keys for other seeds."""
    is_key = lambda x: jnp.issubdtype(getattr(x, "dtype", float), jax.dtypes.prng_key)
    return jax.tree.map(
        lambda x: jax.random.fold_in(x, seed) if is_key(x) else x, state
    )


def load(file: Path) -> dict[Run, dict[str, Any]]:
    """The records that are kept, by their runs."""
    lines = file.read_text().splitlines() if file.exists() else []
    records = map(json.loads, lines)
    return {Run(**record["run"]): record for record in records}


def _rounded(x: float) -> float | None:
    """Six digits; JSON knows no infinity."""
    return float(f"{x:.6g}") if np.isfinite(x) else None
