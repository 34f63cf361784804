"""The energies with their error bars, and the figure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import plotting, study
from experiments.vmc.optimisation import Config, Run
from experiments.vmc.systems import SYSTEMS

Runs = Mapping[str, Sequence[Run]]  # by system


class Estimate(NamedTuple):
    """A mean of correlated samples.

    Attributes:
      mean: of all of them.
      error: standard deviation of that mean.
      correlation: how many successive samples are worth one.
    """

    mean: float
    error: float
    correlation: float


def estimate(samples: np.ndarray) -> Estimate:
    """Mean and error of samples ``[samples, walkers]``.

    The walkers are independent, so that the spread of their means is a measure of the
    error whatever the correlation along each walk is; each walk is one block.
    """
    length, walkers = samples.shape
    means = samples.mean(axis=0)
    correlation = length * means.var(ddof=1) / samples.var(ddof=1)
    return Estimate(means.mean(), means.std(ddof=1) / walkers**0.5, correlation)


def draw(runs: Runs) -> plt.Figure:
    """A row for each system: the energy beside its reference, and its spread."""
    size = 11, 3.6 * len(runs)
    figure, grid = plt.subplots(len(runs), 2, figsize=size, squeeze=False)
    for (name, seeds), (left, right) in zip(runs.items(), grid):
        system = SYSTEMS[name]
        energies = np.stack([run.energies for run in seeds])
        steps = np.arange(1, energies.shape[1] + 1)
        plotting.plot_seeds(left, steps, energies, label="mean over the walkers")
        reference = f"reference, {system.reference}"
        style = {"color": "black", "lw": 1, "ls": "--", "zorder": 4}
        left.axhline(system.reference, label=reference, **style)
        # The first steps are far away; the end matters.
        spread = np.abs(energies - system.reference)[:, len(steps) // 50 :].max()
        limits = system.reference - spread, system.reference + 2 * spread
        labels = {"xlabel": "iteration", "ylabel": "energy [hartree]"}
        plotting.dress(left, "x", title=system.title, ylim=limits, **labels)
        deviations = np.stack([run.deviations for run in seeds])
        plotting.plot_seeds(right, steps, deviations, logarithmic=True)
        title = "spread of the local energy, zero for an eigenstate"
        labels["ylabel"] = "standard deviation [hartree]"
        plotting.dress(right, "xy", title=title, **labels)
    return figure


def energies_table(runs: Runs) -> str:
    """A table with a row for each seed."""
    rows = []
    for name, seeds in runs.items():
        system = SYSTEMS[name]
        for seed, run in enumerate(seeds):
            energy = estimate(run.samples)
            deviation = (energy.mean - system.reference) / energy.error
            row = {"system": system.title, "seed": seed}
            row["energy"] = f"{energy.mean:.6f}"
            row["error bar"] = f"{energy.error:.6f}"
            row["reference"] = f"{system.reference:.6f}"
            row["deviation / error bar"] = f"{deviation:+.1f}"
            row["spread of local energies"] = f"{run.samples.std():.3f}"
            row["correlation [samples]"] = f"{energy.correlation:.1f}"
            row["seconds"] = f"{run.seconds:.0f}"
            rows.append(row)
    return study.table(rows)


def summary(config: Config, runs: Runs) -> str:
    """The table, with a sentence on how it came about."""
    widths = ", ".join(map(str, config.hidden))
    return (
        f"Energies in hartree. Hidden layers of {widths}, {config.walkers} walkers, "
        f"{config.moves} moves between evaluations, float64, jax {jax.__version__}: "
        f"{config.steps} iterations of Adam, then {config.samples} samples a walker. "
        "An error bar is that of the mean, from the spread of the walkers' means.\n\n"
        + energies_table(runs)
    )
