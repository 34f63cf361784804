"""Fit an ODE whose solver reverse mode cannot differentiate.

    python -m experiments.ode

The four parameters of the Lotka-Volterra equations from noisy observations. The solver
chooses its own step in a ``jax.lax.while_loop``, so ``jax.grad`` raises; one forward
pass gives the quadratic model of the loss all the same, and with as many directions as
parameters that is Newton's method.

Writes ``fit.png`` and ``table.md`` into ``experiments/results/ode`` and prints
the table.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from jax import lax

import fomoh_jax
from experiments import minimisation, plotting, study
from experiments.minimisation import Contender, Runs
from fomoh_jax import solvers

# Growth of the prey, predation, growth of the predators, their death.
TRUTH = np.array([1.1, 0.4, 0.1, 0.4])
POPULATIONS = np.array([10.0, 5.0])  # at time zero
NOISE = 0.1  # standard deviation of the observed log-populations
TOLERANCE = 1e-6  # of the solver's step, absolute and relative
NEAR = 1e-6  # a loss that is this close to the best one has arrived


@dataclasses.dataclass(frozen=True)
class Config:
    """Four parameters of the Lotka-Volterra equations, float64, from random starts."""

    steps: int = 200
    """Iterations of every method."""
    seeds: int = 10
    """Random starts."""
    spread: float = 0.2
    """Standard deviation of the starts' log-parameters around the truth."""
    duration: float = 10.0
    """Length of time that is observed."""
    observations: int = 20
    """Number of times, equally spaced, at which both populations are observed."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder ode."""


def lotka_volterra(parameters: jax.Array, y: jax.Array) -> jax.Array:
    r""":math:`\dot u = α - β e^v,\ \dot v = δ e^u - γ` of the log-populations."""
    alpha, beta, delta, gamma = parameters
    prey, predators = jnp.exp(y)
    return jnp.stack([alpha - beta * predators, delta * prey - gamma])


# Dormand and Prince's embedded pair of orders 5 and 4, for an autonomous equation. The
# last stage is the fifth-order solution, whose slope is the first of the next step.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
FOURTH = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
ERROR = tuple(b - c for b, c in zip((*STAGES[-1], 0), FOURTH))


def solve(
    field: Callable,
    y: jax.Array,
    times: jax.Array,
    max_steps: int = 200,
    tolerance: float = TOLERANCE,
) -> jax.Array:
    """The solution of ``y' = field(y)``, ``y(0) = y``, at the times.

    The step follows the error estimate by a PI controller.

    Args:
      field: of the state alone.
      y: the state at time zero, ``[n]``.
      times: increasing, ``[m]``.
      max_steps: in all, the rejected ones too, beside one for each of the times. Where
        they do not suffice the state is NaN.
      tolerance: of the error of a step, absolute and relative.

    Returns:
      The states, ``[m, n]``.
    """

    def attempt(y, slope, h):
        slopes = [slope]
        for row in STAGES:
            stage = y + h * sum(a * s for a, s in zip(row, slopes))
            slopes.append(field(stage))
        error = h * sum(e * s for e, s in zip(ERROR, slopes))
        scale = tolerance + tolerance * jnp.maximum(jnp.abs(y), jnp.abs(stage))
        # The length of a step is no part of the solution and has no derivative.
        norm = lax.stop_gradient(jnp.sqrt(jnp.mean((error / scale) ** 2)))
        return stage, slopes[-1], jnp.maximum(norm, 1e-10)

    def interval(carry, end):
        def unfinished(carry):
            t, *_, count = carry
            return (t < end) & (count < max_steps + len(times))

        def step(carry):
            t, y, slope, h, last_error, count = carry
            cut = jnp.minimum(h, end - t)
            new_y, new_slope, error = attempt(y, slope, cut)
            accepted = error <= 1
            t = jnp.where(accepted, jnp.where(cut < h, end, t + cut), t)
            pairs = (new_y, y), (new_slope, slope)
            y, slope = (jnp.where(accepted, *pair) for pair in pairs)
            factor = jnp.clip(0.9 * error**-0.14 * last_error**0.08, 0.2, 5)
            # A step that was cut to end here says little about the next one.
            h = jnp.where(accepted & (cut < h), h, cut * factor)
            last_error = jnp.where(accepted, jnp.maximum(error, 1e-4), last_error)
            return t, y, slope, h, last_error, count + 1

        t, y, *rest = lax.while_loop(unfinished, step, carry)
        y = jnp.where(t < end, jnp.nan, y)
        return (t, y, *rest), y

    one = jnp.ones((), y.dtype)
    start = (0 * one, y, field(y), 1e-3 * one, one, 0)
    return lax.scan(interval, start, times)[1]


def trajectory(log_parameters: jax.Array, times: jax.Array) -> jax.Array:
    """The log-populations at the times, ``[m, 2]``."""
    field = lambda y: lotka_volterra(jnp.exp(log_parameters), y)
    return solve(field, jnp.log(jnp.asarray(POPULATIONS)), times)


def observe(config: Config) -> tuple[jax.Array, jax.Array]:
    """Times ``[m]`` and noisy log-populations ``[m, 2]``."""
    times = jnp.linspace(0, config.duration, config.observations + 1)[1:]
    exact = trajectory(jnp.log(jnp.asarray(TRUTH)), times)
    noise = jax.random.normal(jax.random.key(2), exact.shape, exact.dtype)
    return times, exact + NOISE * noise


def make_loss(config: Config) -> Callable[[jax.Array], jax.Array]:
    """Half the mean squared error of the log-populations."""
    times, data = observe(config)

    def loss(log_parameters):
        error = trajectory(log_parameters, times) - data
        return jnp.mean(error**2) / 2

    return loss


def reverse_mode_error(loss: Callable, x: jax.Array) -> str:
    """The error that ``jax.grad`` raises. Raises if there is none."""
    try:
        jax.grad(loss)(x)
    except ValueError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    raise AssertionError("jax.grad has differentiated a while_loop.")


def make_contenders() -> dict[str, Contender]:
    """The methods to compare. The rate 1 on the full hyperplane is Newton's method."""

    def kd(k, solver, *fixed):
        return lambda rate, key: fomoh_jax.fomoh_kd(
            k, learning_rate=(*fixed, rate)[0], solver=solver, key=key
        )

    fgd = lambda rate, key: fomoh_jax.fgd(rate, key=key)
    fomoh = lambda rate, key: fomoh_jax.fomoh(rate, key=key)
    # Radii are in log-parameters, and the starts are about 0.2 from the truth.
    region = kd(4, solvers.trust_region(0.1), None)
    rates = (0.1, 0.3, 1.0)
    return {
        "FGD": Contender(fgd, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
        "FoMoH": Contender(fomoh, rates),
        "FoMoH-2D, saddle-free": Contender(kd(2, solvers.saddle_free()), rates),
        "FoMoH-4D, Newton": Contender(kd(4, solvers.newton())),
        "FoMoH-4D, saddle-free": Contender(kd(4, solvers.saddle_free()), rates),
        "FoMoH-4D, trust region": Contender(region),
        "FoMoH-4D, damped": Contender(kd(4, solvers.damped(1e-2)), rates),
    }


def draw(config: Config, results: dict[str, Runs], starts: jax.Array) -> plt.Figure:
    """Distance from the best loss, and the data with the best fit."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    winner = min(results.values(), key=lambda run: run.losses[:, -1].min())
    best = min(run.losses.min() for run in results.values())
    for name, run in results.items():
        x = np.arange(1, run.losses.shape[1] + 1)
        shown = np.clip(run.losses - best, 1e-16, 1e30)
        plotting.plot_quartiles(left, x, shown, label=name)
    left.axhline(NEAR, color="black", lw=0.8, ls=":")
    title = "median over the starts, and the quartiles"
    labels = {"xlabel": "iteration", "ylabel": "loss - best loss", "title": title}
    plotting.dress(left, "xy", {"loc": "lower left"}, ylim=(1e-13, 10), **labels)

    times, data = observe(config)
    fine = jnp.linspace(0, config.duration, 401)[1:]
    seed = winner.losses[:, -1].argmin()
    fits = {"fit": ({}, winner.points[seed])}
    fits["its start"] = {"ls": ":", "lw": 1}, starts[seed]
    for i, label in enumerate(("prey", "predators")):
        color = f"tab:{('blue', 'red')[i]}"
        right.plot(times, np.exp(data[:, i]), "o", ms=4, color=color, label=label)
        for name, (style, x) in fits.items():
            curve = np.exp(trajectory(x, fine))[:, i]
            right.plot(fine, curve, color=color, label=name, **style)
    limits = 0, 1.5 * float(np.exp(data).max())
    labels = {"xlabel": "time", "ylabel": "population", "ylim": limits}
    plotting.dress(right, "", {"ncols": 2}, title="data and the best fit", **labels)
    return figure


def summary(results: dict[str, Runs], best: float) -> str:
    """A row a method, then a row a start."""
    names = "final loss", "iterations", "parameter error"
    methods, starts = [], {}
    for name, run in results.items():
        with np.errstate(over="ignore"):
            errors = np.abs(np.exp(run.points) / TRUTH - 1).max(axis=1)
        steps = minimisation.steps_to(run.losses, best + NEAR)
        frame = pd.DataFrame(dict(zip(names, (run.losses[:, -1], steps, errors))))
        there = frame[np.isfinite(steps)]
        row = {
            "method": name,
            "learning rate": f"{run.rate:g}",
            "median final loss": f"{frame['final loss'].median():.6f}",
            f"within {NEAR:g} of the best": f"{len(there)} / {len(frame)}",
            "median iterations of those": f"{there.iterations.median():.0f}",
            "their parameter error": f"{there['parameter error'].median():.3f}",
        }
        methods.append({k: study.NONE if v == "nan" else v for k, v in row.items()})
        for column, digits in zip(names, ("{:.6g}", "{:.0f}", "{:.3g}")):
            frame[column] = frame[column].map(digits.format)
        starts[name] = frame.replace({"iterations": "inf"}, study.NONE)
    rows = pd.concat(starts, names=["method", "start"]).reset_index()
    return f"{study.table(methods)}\n\nEvery start:\n\n{study.table(rows)}"


def main(config: Config) -> None:
    """Fit from every start with every method, and write what came out."""
    study.at_least(1, config, "steps", "seeds", "observations")
    jax.config.update("jax_enable_x64", True)
    loss, truth = make_loss(config), jnp.log(jnp.asarray(TRUTH))
    noise = jax.random.normal(jax.random.key(0), (config.seeds, 4), truth.dtype)
    starts, contenders = truth + config.spread * noise, make_contenders()
    refusal = reverse_mode_error(loss, truth)
    results = minimisation.minimise_all(loss, contenders, starts, config.steps)
    best = min(run.losses.min() for run in results.values())
    text = (
        f"`jax.grad` of the loss: {refusal}\n\nBest loss {best:.6f}; at the true "
        f"parameters {float(loss(truth)):.6f}. {config.steps} iterations. "
        f"{minimisation.searched(contenders)}\n\n{summary(results, best)}"
    )
    study.write(config.out / "ode", text, fit=draw(config, results, starts))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
