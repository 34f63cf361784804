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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from experiments import plotting
from fomoh_jax import curvature

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
    out: Path = Path("experiments/results")
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
    """One way to estimate, and what is known of it.

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


class Spread(NamedTuple):
    """What came of many estimates, for each number of samples.

    Attributes:
      measured: the variance over the repetitions, summed over the elements.
      reported: the mean of the squares of the standard errors, summed likewise.
      deviation: of the mean of the repetitions from the truth, in its own standard
        deviations: the root of the mean over the elements, which is 1 without bias.
    """

    measured: np.ndarray
    reported: np.ndarray
    deviation: np.ndarray


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
    """Of each element of one sample of the Hessian, ``[D, D]``, by Wick's theorem.

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
    """What is compared, by name."""
    loss, params, h, _ = problem
    trace, diagonal = jnp.trace(h), jnp.diagonal(h)
    level = trace / len(h) * jnp.eye(len(h))
    off = jnp.sum(h**2) - jnp.sum(diagonal**2)

    flat, unravel = ravel_pytree(params)
    of_flat = lambda flat: loss(unravel(flat))

    def of(function, **options):
        return lambda key, n: function(of_flat, probes=n, **options)(key, flat)

    former = jax.jit(lambda key: of(curvature.sampled_hessian)(key, FORMER).value)(
        jax.random.key(1)
    )
    baselines = {
        ", no baseline": (0.0, h),
        "": (None, h - level),
        ", former estimate": (former, h - former),
    }
    estimators = {
        "Hutchinson's trace": Estimator(
            "trace", of(curvature.hutchinson_trace), trace[None], float(2 * off)
        ),
        "Hutchinson's diagonal": Estimator(
            "diagonal", of(curvature.hutchinson_diagonal), diagonal, float(off)
        ),
    }
    for suffix, (baseline, rest) in baselines.items():
        variance = variances(rest)
        if suffix != ", former estimate":
            estimators[f"sampled diagonal{suffix}"] = Estimator(
                "diagonal",
                of(curvature.sampled_diagonal, baseline=baseline),
                diagonal,
                float(jnp.trace(variance)),
            )
        estimators[f"sampled Hessian{suffix}"] = Estimator(
            "Hessian",
            of(curvature.sampled_hessian, baseline=baseline),
            h.ravel(),
            float(jnp.sum(variance)),
        )
    return estimators


def repeat(function: Callable, repetitions: int) -> list[np.ndarray]:
    """A function of a key, a tree, with many keys: its leaves."""
    keys = jax.random.split(jax.random.key(2), repetitions)
    results = jax.jit(lambda keys: jax.lax.map(function, keys))(keys)
    return list(map(np.asarray, jax.tree.leaves(results)))


def measure(estimator: Estimator, config: Config) -> Spread:
    """Many estimates of each number of samples."""
    flat = lambda estimate: [ravel_pytree(part)[0] for part in estimate]
    rows = []
    for n in config.samples:
        values, errors = repeat(
            lambda key: flat(estimator.estimate(key, n)), config.repetitions
        )
        variance = np.var(values, axis=0, ddof=1)
        off = (values.mean(0) - np.asarray(estimator.exact)) ** 2
        standard = off / (variance / config.repetitions)
        rows.append((variance.sum(), (errors**2).mean(0).sum(), standard.mean() ** 0.5))
    return Spread(*map(np.array, zip(*rows)))


def newton_reductions(problem: Problem, config: Config) -> np.ndarray:
    """By how much a step from a sampled Hessian lowers the exact quadratic model.

    Returns:
      ``[repetitions, samples]``, 1 for the minimum of the model.
    """
    loss, params, h, gradient = problem
    best = gradient @ jnp.linalg.solve(h, gradient) / 2

    def reduction(key, n):
        hessian = curvature.sampled_hessian(loss, probes=n)(key, params)
        step = ravel_pytree(curvature.newton_step(loss, (params,), hessian))[0]
        return -(gradient @ step + step @ h @ step / 2) / best

    columns = [
        repeat(lambda key: reduction(key, n), config.repetitions)[0]
        for n in config.samples
    ]
    return np.stack(columns, 1)


def draw(
    estimators: dict[str, Estimator],
    spreads: dict[str, Spread],
    reductions: np.ndarray,
    config: Config,
    path: Path,
) -> None:
    """A panel for each of what is estimated, and one for Newton's step."""
    figure, panels = plt.subplots(1, 4, figsize=(16, 4.4))
    x = np.array(config.samples)
    for axes, panel in zip(panels, ("trace", "diagonal", "Hessian")):
        names = [name for name in estimators if estimators[name].panel == panel]
        for i, name in enumerate(names):
            predicted = estimators[name].variance / x
            axes.plot(x, predicted, color=f"C{i}", lw=1)
            axes.plot(x, spreads[name].measured, "o", color=f"C{i}", label=name)
            axes.plot(x, spreads[name].reported, "x", color=f"C{i}", ms=8)
        axes.set(xscale="log", yscale="log", xlabel="samples", title=panel)
        if names:
            axes.legend(fontsize=7.5)
    panels[0].set_ylabel("variance, summed over the elements")
    figure.suptitle(
        "Variance: closed form (line), over the repetitions (dots), as reported (x)"
    )
    last = panels[-1]
    plotting.plot_quartiles(last, x, reductions, label="sampled Hessian", color="C1")
    title = "Newton's step: part of the reduction"
    last.axhline(1, color="black", ls="--", lw=1, label="exact Hessian")
    last.set(xscale="log", xlabel="samples", title=title, ylim=(0, 1.1))
    last.legend(fontsize=7.5)
    for axes in panels:
        axes.grid(alpha=0.3)
    plotting.save(figure, path)


def summary(
    estimators: dict[str, Estimator], spreads: dict[str, Spread], config: Config
) -> str:
    """A row an estimate."""
    between = lambda row: f"{row.min():.2f}-{row.max():.2f}"
    columns = {
        "estimate": list(estimators),
        "error of one sample": [
            f"{e.variance**0.5 / np.linalg.norm(e.exact):.3g}"
            for e in estimators.values()
        ],
    }
    for field in ("measured", "reported"):
        columns[f"{field} variance ÷ closed form"] = [
            between(getattr(spreads[name], field) * config.samples / e.variance)
            for name, e in estimators.items()
        ]
    columns["deviation of the mean"] = [
        between(spreads[name].deviation) for name in estimators
    ]
    counts = ", ".join(map(str, config.samples))
    notes = (
        f"{config.repetitions} repetitions of {counts} samples each: smallest and "
        "largest. The error of one sample is the root of its variance, summed over the "
        "elements, relative to the norm of what is estimated; that of n goes with "
        "1 / √n. The deviation of the mean from the truth is in its own standard "
        f"deviations, about 1 if there is no bias. The former estimate is from "
        f"{FORMER} other samples."
    )
    return f"{plotting.table(columns)}\n\n{notes}"


def checks(problem: Problem) -> str:
    """Products, systems and eigenvalues beside the exact ones."""
    loss, params, h, gradient = problem
    unravel = ravel_pytree(params)[1]
    flat = lambda tree: np.asarray(ravel_pytree(tree)[0])
    relative = lambda x, exact: np.linalg.norm(x - exact) / np.linalg.norm(exact)
    eigenvalues = np.linalg.eigvalsh(h)
    top = eigenvalues[np.argsort(-np.abs(eigenvalues))][:3]
    rows = []

    product = jax.jit(lambda p: curvature.hvp(loss, (p,), (unravel(gradient),)))
    error = relative(flat(product(params)), np.asarray(h @ gradient))
    rows.append(("product with the gradient", 1, f"{error:.0e}", "-"))

    pairs = jax.jit(
        lambda p: curvature.top_eigenvalues(loss, (p,), jax.random.key(3), 3)
    )(params)
    error = f"{relative(np.asarray(pairs.values), top):.0e}"
    found = ", ".join(f"{x:.3g}" for x in pairs.values)
    rows.append(("three top eigenvalues", int(pairs.iterations), error, found))

    # As it is, and with the sign of the decay turned, so that it is no minimum.
    @jax.jit
    def solve(params, growth):
        turned = lambda p: loss(p) - growth / 2 * jnp.sum(ravel_pytree(p)[0] ** 2)
        return curvature.conjugate_gradients(
            turned, (params,), (unravel(gradient),), tol=1e-10
        )

    convex, saddle = solve(params, 0.0), solve(params, 2 * DECAY)
    error = relative(flat(convex.solution), np.linalg.solve(h, gradient))
    found = "negative curvature" if convex.negative_curvature else "-"
    name = "conjugate gradients"
    rows.append((name, int(convex.iterations), f"{error:.0e}", found))
    d = flat(saddle.direction)
    along = d @ (h - 2 * DECAY * np.eye(len(h))) @ d
    found = f"dᵀHd = {along:.2g}" if saddle.negative_curvature else "-"
    name += ", weight decay turned"
    rows.append((name, int(saddle.iterations), "-", found))

    titles = "by forward passes alone", "passes", "relative error", "found"
    columns = {
        title: list(map(str, column)) for title, column in zip(titles, zip(*rows))
    }
    spectrum = f"from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}"
    return (
        f"{plotting.table(columns)}\n\n{len(h)} parameters; the eigenvalues of the "
        f"Hessian are {spectrum}."
    )


def main(config: Config) -> None:
    """Estimate over and over, check, and write what came out."""
    if min(config.samples, default=0) < 2 or config.repetitions < 2:
        raise SystemExit("--samples and --repetitions must be at least 2.")
    if min(config.inputs, config.hidden) < 1:
        raise SystemExit("--inputs and --hidden must be at least 1.")
    jax.config.update("jax_enable_x64", True)
    problem = make_problem(config)
    estimators = make_estimators(problem)
    spreads = {}
    for name, estimator in (bar := tqdm(estimators.items(), unit="estimate")):
        bar.set_postfix_str(name)
        spreads[name] = measure(estimator, config)
    reductions = newton_reductions(problem, config)
    folder = config.out / "curvature"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "variance.png"
    draw(estimators, spreads, reductions, config, path)
    parts = ", ".join(f"{x:.2f}" for x in np.median(reductions, 0))
    text = (
        f"{summary(estimators, spreads, config)}\n\nNewton's step from so many samples "
        "lowers the exact quadratic model by a median of "
        f"{parts} of what its minimum does.\n\n{checks(problem)}"
    )
    (folder / "table.md").write_text(text + "\n")
    print(f"{text}\n\nfigure: {path}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
