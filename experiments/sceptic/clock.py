"""A clock that counts time in forward passes, timed on the machine as it is then.

A shared machine may be slower by a third an hour later, and that must not decide how
many steps a run has. So each stretch of a run is followed by some forward passes of the
same problem, and its time is counted in them.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.methods import mean_loss
from experiments.sceptic.problem import Problem

REMEMBERED = 9  # timings, of which the median counts
STRETCH = 0.03  # seconds of forward passes that are timed


class Clock:
    """Counts the time of functions in forward passes.

    Attributes:
      passes: so far.
      seconds: so far.
    """

    def __init__(self, problem: Problem, params: Any):
        self._params = params
        self._forward = jax.jit(make_forward(problem), static_argnums=2)
        self._count = 1
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._time_forward()  # compiles
        self._count = max(1, round(STRETCH / self._time_forward()))
        self._time_forward()
        self.restart()

    def restart(self) -> None:
        """Starts again from zero, with fresh timings of forward passes."""
        self.passes = self.seconds = 0.0
        self._recent.clear()
        for _ in range(REMEMBERED):
            self._recent.append(self._time_forward())

    def timed(self, function: Callable, *args: Any) -> Any:
        """The result of a function, whose time is counted until it is there."""
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        seconds = time.perf_counter() - start
        self._recent.append(self._time_forward())
        self.passes += seconds / np.median(self._recent)
        self.seconds += seconds
        return result

    def _time_forward(self) -> float:
        start = time.perf_counter()
        self._forward(self._params, jax.random.key(0), self._count).block_until_ready()
        return (time.perf_counter() - start) / self._count


def make_forward(problem: Problem) -> Callable[[Any, jax.Array, int], jax.Array]:
    """``forward(params, key, count)``, the sum of so many losses of random batches."""

    def forward(params, key, count):
        def one(total, key):
            batch = problem.sample(key)
            return total + mean_loss(problem.loss_of_one, batch)(params), None

        keys = jax.random.split(key, count)
        return jax.lax.scan(one, jnp.zeros(()), keys)[0]

    return forward
