"""Minimise sums of local terms by Newton's method with sparse Hessians.

    python -m experiments.sparse_newton

A minimal surface over a grid and the optimal control of a pendulum, in thousands of
unknowns. Newton's method with ``fomoh_jax.sparse_hessian`` and a sparse factorisation,
the same with ``jax.hessian`` and a dense one, and L-BFGS. Both of Newton's methods add
a multiple of the identity to the Hessian where a step would not reduce the loss as
predicted (Levenberg's damping).

Writes ``convergence.png`` and ``table.md`` into ``experiments/results/sparse_newton``
and prints the table.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.sparse
import scipy.sparse.linalg
import tyro
from jax.experimental.sparse import BCOO

import fomoh_jax
from experiments import plotting, study
from experiments.minimisation import take_step
from experiments.sparse_problems import Problem, minimal_surface, optimal_control

SUFFICIENT = 1e-4  # part of the predicted reduction that makes a step acceptable
FIRST_DAMPING = 1e-4  # of the largest diagonal element of the Hessian
LEAST_DAMPING = 1e-10  # of the same; a smaller one is zero
FLOOR = 1e-13  # of the figure; nearer to the minimum the loss is rounding


@dataclasses.dataclass(frozen=True)
class Config:
    """A minimal surface and the optimal control of a pendulum, float64."""

    cells: int = 50
    """Cells on each side of the surface's grid."""
    steps: int = 500
    """Time steps of the control problem."""
    tolerance: float = 1e-8
    """A method stops where no element of the gradient is larger than this part of the
    largest one at the start."""
    iterations: int = 20_000
    """A method stops after these."""
    seconds: float = 30.0
    """A method stops after these, on each problem."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder sparse_newton."""


class State(NamedTuple):
    """The state of a method.

    Attributes:
      x: the unknowns, ``[D]``.
      value: the loss.
      gradient: its gradient, ``[D]``.
      memory: whatever else the method keeps.
    """

    x: Any
    value: Any
    gradient: Any
    memory: Any


class Method(NamedTuple):
    """An iteration, compiled.

    Attributes:
      init: the state at a start.
      step: the state after one more iteration.
      temporary_bytes: of its Hessian's program; ``None`` if it takes no Hessian.
      stored: elements of its Hessian.
    """

    init: Callable[[np.ndarray], State]
    step: Callable[[State], State]
    temporary_bytes: int | None = None
    stored: int | None = None


class Run(NamedTuple):
    """A method from the start of a problem.

    Attributes:
      method: what ran.
      x: where it ended, ``[D]``.
      seconds: since the start, before each iteration and after the last.
      losses: at the same times.
      slopes: the largest elements of the gradients, at the same times.
    """

    method: Method
    x: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray
    slopes: np.ndarray


def compiled(fun: Callable, x: np.ndarray) -> Any:
    """Compiles a function for arrays like ``x``, so that no compilation is timed."""
    return jax.jit(fun).lower(x).compile()


def sparse_newton(problem: Problem) -> Method:
    """Newton's method with a sparse Hessian and SuperLU."""
    hessian = compiled(fomoh_jax.sparse_hessian(problem.fun), problem.start)

    def matrix(x):
        found: BCOO = hessian(x)
        entries = np.asarray(found.data), np.asarray(found.indices).T
        return scipy.sparse.csc_array(entries, shape=found.shape)

    identity = scipy.sparse.eye_array(problem.start.size, format="csc")
    solve = lambda h, damping, b: scipy.sparse.linalg.spsolve(h + damping * identity, b)
    stored = hessian(problem.start).nse
    return newton(problem, matrix, solve, hessian, stored)


def dense_newton(problem: Problem) -> Method:
    """Newton's method with ``jax.hessian`` and LAPACK."""
    hessian = compiled(jax.hessian(problem.fun), problem.start)
    matrix = lambda x: np.asarray(hessian(x))
    identity = np.eye(problem.start.size)
    solve = lambda h, damping, b: np.linalg.solve(h + damping * identity, b)
    return newton(problem, matrix, solve, hessian, problem.start.size**2)


def newton(
    problem: Problem, matrix: Callable, solve: Callable, hessian: Any, stored: int
) -> Method:
    r"""Steps :math:`-(H + \lambda I)^{-1} g`.

    The damping :math:`\lambda` grows tenfold until the loss falls by some part of what
    the quadratic model predicts. After each step it falls to a tenth, in the end to
    zero, so that the last steps are Newton's own.

    Args:
      problem: what is minimised.
      matrix: the Hessian at a point, for ``solve``.
      solve: ``solve(matrix, damping, right_hand_side)``.
      hessian: the Hessian's program.
      stored: how many elements it returns.

    Raises:
      ArithmeticError: in a step, if no damping reduces the loss.
    """
    evaluate = compiled(jax.value_and_grad(problem.fun), problem.start)

    def state_at(x: np.ndarray, damping: float) -> State:
        value, gradient = map(np.asarray, evaluate(x))
        return State(x, value, gradient, damping)

    def step(state: State) -> State:
        h, damping = matrix(state.x), state.memory
        scale = np.max(np.abs(h.diagonal()))
        # The rounding of the loss is larger than the reductions of the last steps.
        rounding = 10 * np.finfo(float).eps * np.abs(state.value)
        while np.isfinite(damping):
            p = -solve(h, damping, state.gradient)
            predicted = -(state.gradient @ p + p @ (h @ p) / 2)
            lower = damping / 10 if damping > LEAST_DAMPING * scale else 0.0
            new = state_at(state.x + p, lower)
            reduction = state.value - new.value
            if predicted > 0 and reduction >= SUFFICIENT * predicted - rounding:
                return new
            damping = 10 * damping or FIRST_DAMPING * scale
        raise ArithmeticError("no damping reduces the loss")

    size = hessian.memory_analysis().temp_size_in_bytes
    return Method(lambda x: state_at(x, 0.0), step, size, stored)


def lbfgs(problem: Problem) -> Method:
    """Optax's L-BFGS with its zoom line search and ten updates of memory."""
    tx = optax.lbfgs()
    known = optax.value_and_grad_from_state(problem.fun)

    def init(x):
        memory = tx.init(x)
        return State(x, *known(x, state=memory), memory)

    def step(state):
        x, value, gradient, memory = state
        options = {"value": value, "grad": gradient, "value_fn": problem.fun}
        x, memory = take_step(tx, x, memory, gradient, **options)
        return State(x, *known(x, state=memory), memory)

    return Method(jax.jit(init), jax.jit(step))


METHODS = {
    "Newton, sparse": sparse_newton,
    "Newton, dense": dense_newton,
    "L-BFGS": lbfgs,
}
STYLES = {
    "Newton, sparse": {"color": "black", "ls": "-", "marker": "o"},
    "Newton, dense": {"color": "tab:blue", "ls": "--", "marker": "s"},
    "L-BFGS": {"color": "tab:orange", "ls": ":"},
}


def problems(config: Config) -> dict[str, Problem]:
    """The problems, by name."""
    return {
        "minimal surface": minimal_surface(config.cells),
        "optimal control": optimal_control(config.steps),
    }


def run(method: Method, problem: Problem, config: Config) -> Run:
    """The method from the problem's start until it may stop."""
    start = jnp.asarray(problem.start)
    state = method.init(start)
    # Compiled, and not timed: the types of a first state can be weak.
    jax.block_until_ready(method.step(method.step(state)))
    largest = lambda state: float(np.max(np.abs(state.gradient)))
    history = [(0.0, float(state.value), largest(state))]
    target = config.tolerance * history[0][2]
    began = time.perf_counter()
    for _ in range(config.iterations):
        state = jax.block_until_ready(method.step(state))
        seconds = time.perf_counter() - began
        history.append((seconds, float(state.value), largest(state)))
        if history[-1][2] <= target or seconds > config.seconds:
            break
    return Run(method, np.asarray(state.x), *np.array(history).T)


def run_all(config: Config) -> dict[str, dict[str, Run]]:
    """Every method on every problem."""
    return {
        name: {
            title: run(make(problem), problem, config)
            for title, make in study.progress(METHODS, f"method on the {name}")
        }
        for name, problem in problems(config).items()
    }


def summary(results: dict[str, dict[str, Run]], config: Config) -> str:
    """A table of the time that each method took and of where it ended."""
    rows = []
    for name, runs in results.items():
        lowest = min(run.losses.min() for run in runs.values())
        for title, found in runs.items():
            method = found.method
            stored, temporary = method.stored, method.temporary_bytes
            rows.append(
                {
                    "problem": name,
                    "unknowns": found.x.size,
                    "method": title,
                    "iterations": len(found.losses) - 1,
                    "seconds": f"{found.seconds[-1]:.2g}",
                    "Hessian, elements": None if stored is None else f"{stored:,}",
                    "Hessian, temporary MB": temporary and f"{temporary / 1e6:.2g}",
                    "loss above the lowest": f"{found.losses[-1] - lowest:.1e}",
                    "largest element of the gradient": f"{found.slopes[-1]:.1e}",
                }
            )
    return (
        f"{study.table(rows)}\n\nA method stops when the largest element of the "
        f"gradient is {config.tolerance:g} of that at the start, after "
        f"{config.iterations} iterations, or after {config.seconds:g} s. Compilation "
        "is not timed."
    )


def draw(results: dict[str, dict[str, Run]]) -> plt.Figure:
    """A row a problem: the loss above the lowest against seconds and iterations."""
    shape = {"figsize": (8.8, 3.6 * len(results)), "squeeze": False}
    figure, panels = plt.subplots(len(results), 2, sharey="row", **shape)
    for (name, runs), (left, right) in zip(results.items(), panels):
        lowest = min(run.losses.min() for run in runs.values())
        for title, found in runs.items():
            above = np.maximum(found.losses - lowest, FLOOR)
            style = STYLES[title] | {"label": title, "lw": 1.6, "ms": 4}
            left.plot(found.seconds[1:], above[1:], **style)
            right.plot(np.arange(1, len(above)), above[1:], **style)
        size = next(iter(runs.values())).x.size
        options = {"legend": {"loc": "best"}, "title": f"{name}, D = {size:,}"}
        plotting.dress(left, "xy", **options, xlabel="time (s)")
        plotting.dress(right, "xy", **options, xlabel="iterations")
        left.set_ylabel("loss above the lowest")
    return figure


def main(config: Config) -> None:
    """Run every method on every problem, and write what came out."""
    study.at_least(2, config, "cells")
    study.at_least(1, config, "steps", "iterations")
    jax.config.update("jax_enable_x64", True)
    results = run_all(config)
    text = summary(results, config)
    study.write(config.out / "sparse_newton", text, convergence=draw(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
