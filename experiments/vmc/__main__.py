"""Find ground states of two electrons by variational Monte Carlo.

    python -m experiments.vmc
    python -m experiments.vmc --quick

A quantum dot, whose energy is known exactly, and helium. The wave function has its
cusps by its form and a small network for the rest; Metropolis walkers draw from its
square. The local energy takes its gradient and its Laplacian from one forward pass, of
``fomoh_jax.value_grad_and_laplacian``, and Adam minimises the mean of it.

Writes ``energy.png`` and ``table.md`` into ``experiments/results/vmc`` and prints the
table; ``--quick`` writes into ``experiments/results/vmc-quick``.
"""

import dataclasses

import jax
import tyro

from experiments import study
from experiments.vmc import report
from experiments.vmc.optimisation import Config, optimise_all

SMALL = {"hidden": (8,), "walkers": 64, "steps": 40, "samples": 10, "seeds": 1}


def main(config: Config) -> None:
    """Optimise, measure, and write what came out."""
    study.at_least(1, config, "hidden", "moves", "steps", "samples", "seeds")
    study.at_least(2, config, "walkers")
    jax.config.update("jax_enable_x64", True)
    if config.quick:
        config = dataclasses.replace(config, **SMALL)
    runs = optimise_all(config)
    folder = config.out / ("vmc-quick" if config.quick else "vmc")
    study.write(folder, report.summary(config, runs), energy=report.draw(runs))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
