"""How far estimates of curvature are off, against the number of samples.

    python -m experiments.curvature

The Hessian of a small network's loss, its trace and its diagonal: Hutchinson's
estimates from random signs, and those from values of ``vᵀHv`` alone with different
control variates. The variance is measured over repetitions, beside the closed form and
what the estimates say of themselves. Newton's step from a sampled Hessian, a linear
system by conjugate gradients and the top eigenvalues are compared with exact ones.

Writes ``variance.png`` and ``table.md`` into ``experiments/results/curvature`` and
prints the table.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from jax.flatten_util import ravel_pytree

from experiments import plotting, study
from fomoh_jax import curvature, plans

FORWARD = plans.forward()
DECAY = 0.3  # of the weights
FORMER = 1000  # samples of the estimate that another one starts from


@dataclasses.dataclass(frozen=True)
class Config:
    """A tanh network with one hidden layer that has been trained a little, float64."""

    inputs: int = 3
    """Features of a point."""
    hidden: int = 4
    """Hidden units."""
    samples: tuple[int, ...] = (16, 128, 1024)
    """Numbers of samples, or of probes."""
    repetitions: int = 400
    """Estimates of each number of samples."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder curvature."""


class Problem(NamedTuple):
    """A loss, where it is looked at, and its exact Hessian.

    Attributes:
      loss: a function of a tree of parameters.
      params: the tree.
      hessian: ``[D, D]``, by ``jax.hessian``.
      gradient: ``[D]``, by ``jax.grad``.
    """

    loss: Callable
    params: dict[str, jax.Array]
    hessian: jax.Array
    gradient: jax.Array


class Estimator(NamedTuple):
    """A way to estimate a quantity, and its exact value.

    Attributes:
      panel: what is estimated.
      estimate: ``estimate(key, n)``, a :class:`curvature.Estimate` from ``n`` samples.
      exact: what it should be, flat.
      variance: of one sample by the closed form, summed over the elements.
    """

    panel: str
    estimate: Callable
    exact: jax.Array
    variance: float


def make_problem(config: Config) -> Problem:
    """Regression with weight decay; a few gradient steps make its Hessian a usual one.

    The decay makes it positive definite, so that Newton's step is there to compare.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (64, config.inputs), jnp.float64)
    y = jnp.sin(2 * x[:, 0]) + x[:, -1] ** 2 / 2
    shape = config.inputs, config.hidden
    params = {
        "bias": jnp.zeros(config.hidden, jnp.float64),
        "first": jax.random.normal(keys[1], shape, jnp.float64),
        "last": jax.random.normal(keys[2], (config.hidden,), jnp.float64),
    }

    def loss(params):
        hidden = jnp.tanh(x @ params["first"] + params["bias"])
        decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.mean((hidden @ params["last"] - y) ** 2) + DECAY / 2 * decay

    flat, unravel = ravel_pytree(params)
    of_flat = lambda flat: loss(unravel(flat))

    @jax.jit
    def trained(flat):
        step = lambda _, flat: flat - 0.1 * jax.grad(of_flat)(flat)
        flat = jax.lax.fori_loop(0, 50, step, flat)
        return flat, jax.hessian(of_flat)(flat), jax.grad(of_flat)(flat)

    flat, hessian, gradient = trained(flat)
    return Problem(loss, unravel(flat), hessian, gradient)


def variances(h: jax.Array) -> jax.Array:
    """Variances ``[D, D]`` of one sample's elements of the Hessian, by Wick's theorem.

    Args:
      h: what the baseline leaves of the Hessian.
    """
    d, squares, trace = jnp.diagonal(h), jnp.diagonal(h @ h), jnp.trace(h)
    sums = lambda x: x[:, None] + x
    common = jnp.sum(h**2) / 2 + trace**2 / 4
    off = 3 * h**2 + 2 * jnp.outer(d, d) + 2 * sums(squares) + trace * sums(d) + common
    own = 5 * d**2 + 8 * squares + 4 * trace * d + 2 * common
    return jnp.where(jnp.eye(len(h), dtype=bool), own, off)


def make_estimators(problem: Problem) -> dict[str, Estimator]:
    """The estimators to compare, by name."""
    loss, params, h, _ = problem
    trace, diagonal = jnp.trace(h), jnp.diagonal(h)
    off = float(jnp.sum(h**2) - jnp.sum(diagonal**2))
    flat, unravel = ravel_pytree(params)
    of_flat = lambda flat: loss(unravel(flat))

    def of(function, **options):
        return lambda key, n: function(of_flat, probes=n, **options)(key, flat)

    def estimator(panel, left, **options):
        """Estimates the Hessian or its diagonal beside a baseline, from samples."""
        whole, variance = panel == "Hessian", variances(left)
        function = curvature.sampled_hessian if whole else curvature.sampled_diagonal
        total = jnp.sum(variance) if whole else jnp.trace(variance)
        exact = h.ravel() if whole else diagonal
        return Estimator(panel, of(function, **options), exact, float(total))

    sampled = of(curvature.sampled_hessian)
    former = jax.jit(lambda key: sampled(key, FORMER).value)(jax.random.key(1))
    level = h - trace / len(h) * jnp.eye(len(h))
    beside = estimator("Hessian", h - former, baseline=former)
    probed, traced = curvature.hutchinson_diagonal, curvature.hutchinson_trace
    return {
        "Hutchinson's trace": Estimator("trace", of(traced), trace[None], 2 * off),
        "Hutchinson's diagonal": Estimator("diagonal", of(probed), diagonal, off),
        "sampled diagonal, no baseline": estimator("diagonal", h, baseline=0.0),
        "sampled Hessian, no baseline": estimator("Hessian", h, baseline=0.0),
        "sampled diagonal": estimator("diagonal", level),
        "sampled Hessian": estimator("Hessian", level),
        "sampled Hessian, former estimate": beside,
    }


def repeat(function: Callable, repetitions: int) -> list[np.ndarray]:
    """The leaves of a function's results, with a key for each repetition."""
    keys = jax.random.split(jax.random.key(2), repetitions)
    results = jax.jit(lambda keys: jax.lax.map(function, keys))(keys)
    return list(map(np.asarray, jax.tree.leaves(results)))


def measure(estimator: Estimator, samples: int, repetitions: int) -> dict[str, Any]:
    """The variance of estimates from so many samples.

    Returns:
      ``predicted``, ``measured`` and ``reported``: the variance by the closed form,
      over the repetitions, and as the mean of the squares of the standard errors, each
      summed over the elements. ``deviation``: of the mean of the repetitions from the
      truth, in its own standard deviations; about 1 without bias.
    """
    flat = lambda estimate: [ravel_pytree(part)[0] for part in estimate]
    estimate = lambda key: flat(estimator.estimate(key, samples))
    values, errors = repeat(estimate, repetitions)
    variance = np.var(values, axis=0, ddof=1)
    bias = (values.mean(0) - np.asarray(estimator.exact)) ** 2
    return {
        "panel": estimator.panel,
        "samples": samples,
        "predicted": estimator.variance / samples,
        "measured": variance.sum(),
        "reported": (errors**2).mean(0).sum(),
        "deviation": (bias / (variance / repetitions)).mean() ** 0.5,
        "error": estimator.variance**0.5 / np.linalg.norm(estimator.exact),
    }


def newton_reductions(problem: Problem, config: Config) -> np.ndarray:
    """The reductions of the exact quadratic model by steps from a sampled Hessian.

    Returns:
      ``[repetitions, samples]``, 1 for the minimum of the model.
    """
    loss, params, h, gradient = problem
    best = gradient @ jnp.linalg.solve(h, gradient) / 2

    def reduction(key, n):
        hessian = curvature.sampled_hessian(loss, probes=n)(key, params)
        step = ravel_pytree(curvature.newton_step(loss, (params,), hessian))[0]
        return -(gradient @ step + step @ h @ step / 2) / best

    at = lambda n: repeat(functools.partial(reduction, n=n), config.repetitions)[0]
    return np.stack(list(map(at, config.samples)), 1)


def draw(spreads: pd.DataFrame, reductions: np.ndarray) -> plt.Figure:
    """The figure: a panel for each quantity, and one for Newton's step."""
    figure, (*panels, last) = plt.subplots(1, 4, figsize=(16, 4.4))
    for axes, panel in zip(panels, ("trace", "diagonal", "Hessian")):
        mine = spreads[spreads.panel == panel].groupby("estimate", sort=False)
        for i, (name, rows) in enumerate(mine):
            axes.plot(rows.samples, rows.predicted, color=f"C{i}", lw=1)
            axes.plot(rows.samples, rows.measured, "o", color=f"C{i}", label=name)
            axes.plot(rows.samples, rows.reported, "x", color=f"C{i}", ms=8)
        plotting.dress(axes, log="xy", xlabel="samples", title=panel)
    panels[0].set_ylabel("variance, summed over the elements")
    shown = "closed form (line), over the repetitions (dots), as reported (x)"
    figure.suptitle(f"Variance: {shown}")
    x = spreads.samples.unique()
    plotting.plot_quartiles(last, x, reductions, label="sampled Hessian", color="C1")
    last.axhline(1, color="black", ls="--", lw=1, label="exact Hessian")
    title = "Newton's step: part of the reduction"
    plotting.dress(last, log="x", xlabel="samples", title=title, ylim=(0, 1.1))
    return figure


def summary(spreads: pd.DataFrame) -> str:
    """A table of the smallest and largest ratios over the numbers of samples."""
    between = lambda column: f"{column.min():.2f}-{column.max():.2f}"
    return study.table(
        {
            "estimate": name,
            "error of one sample": f"{rows.error.iloc[0]:.3g}",
            "measured variance ÷ closed form": between(rows.measured / rows.predicted),
            "reported variance ÷ closed form": between(rows.reported / rows.predicted),
            "deviation of the mean": between(rows.deviation),
        }
        for name, rows in spreads.groupby("estimate", sort=False)
    )


def checks(problem: Problem) -> str:
    """A table of products, systems and eigenvalues beside the exact ones."""
    loss, params, h, gradient = problem
    unravel = ravel_pytree(params)[1]
    flat = lambda tree: np.asarray(ravel_pytree(tree)[0])
    error = lambda x, like: f"{np.linalg.norm(x - like) / np.linalg.norm(like):.0e}"
    eigenvalues = np.linalg.eigvalsh(h)
    top = eigenvalues[np.argsort(-np.abs(eigenvalues))][:3]

    @jax.jit
    def estimates(params):
        product = curvature.hvp(loss, (params,), (unravel(gradient),), plan=FORWARD)
        key = jax.random.key(3)
        pairs = curvature.top_eigenvalues(loss, (params,), key, 3, plan=FORWARD)
        return product, pairs

    # With the sign of the decay turned the point is not a minimum.
    @jax.jit
    def solve(params, growth):
        turned = lambda p: loss(p) - growth / 2 * jnp.sum(ravel_pytree(p)[0] ** 2)
        vector = (unravel(gradient),)
        return curvature.conjugate_gradients(
            turned, (params,), vector, tol=1e-10, plan=FORWARD
        )

    product, pairs = estimates(params)
    convex, saddle = solve(params, 0.0), solve(params, 2 * DECAY)
    d, exact = flat(saddle.direction), np.linalg.solve(h, gradient)
    along = d @ (h - 2 * DECAY * np.eye(len(h))) @ d
    found = ", ".join(f"{x:.3g}" for x in pairs.values)
    solved, negative = "conjugate gradients", f"dᵀHd = {along:.2g}"
    rows = [
        ("product with the gradient", 1, error(flat(product), h @ gradient), None),
        ("three top eigenvalues", pairs.iterations, error(pairs.values, top), found),
        (solved, convex.iterations, error(flat(convex.solution), exact), None),
        (f"{solved}, weight decay turned", saddle.iterations, None, negative),
    ]
    titles = ["by forward passes alone", "passes", "relative error", "found"]
    table = study.table(pd.DataFrame(rows, columns=titles, dtype=object))
    spectrum = f"from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}"
    return f"{table}\n\n{len(h)} parameters; the eigenvalues are {spectrum}."


def main(config: Config) -> None:
    """Make the estimates, check them, and write the results."""
    study.at_least(2, config, "samples", "repetitions")
    study.at_least(1, config, "inputs", "hidden")
    jax.config.update("jax_enable_x64", True)
    problem = make_problem(config)
    spreads = pd.DataFrame(
        {"estimate": name} | measure(estimator, samples, config.repetitions)
        for name, estimator in study.progress(make_estimators(problem), "estimate")
        for samples in config.samples
    )
    reductions = newton_reductions(problem, config)
    parts = ", ".join(f"{x:.2f}" for x in np.median(reductions, 0))
    text = (
        f"{summary(spreads)}\n\nNewton's step lowers the exact quadratic model by a "
        f"median of {parts} of what its minimum does.\n\n{checks(problem)}"
    )
    study.write(config.out / "curvature", text, variance=draw(spreads, reductions))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
