"""Solve elliptic equations by a network, with reverse mode over a trace.

    python -m experiments.pinn

A tanh network in the unit disc is trained on the mean squared residual of Poisson's
equation, and of one with an anisotropic operator ``Σ_ij C_ij(x) ∂_ij``, whose solution
is known. The operator is ``fomoh_jax.laplacian``; the gradient is reverse mode over it.
Then the loss and its gradient are timed in 2, 10 and 50 dimensions beside the trace of
``jax.hessian``, nested ``jvp``, ``jax.experimental.jet`` and folx.

Writes ``pinn.png`` and ``table.md`` into ``experiments/results/pinn`` and prints the
tables.
"""

import jax
import tyro

from experiments import study
from experiments.pinn import report
from experiments.pinn.comparison import compare
from experiments.pinn.training import Config, train


def main(config: Config) -> None:
    """Train, compare, and write what came out."""
    study.at_least(1, config, "points", "every", "hidden", "dimensions")
    study.at_least(0, config, "adam_steps", "lbfgs_steps", "seeds", "repeats")
    jax.config.update("jax_enable_x64", True)
    runs = train(config) if config.seeds else {}
    text = report.summary(config, runs, compare(config))
    figures = {"pinn": report.draw(runs)} if runs else {}
    study.write(config.out / "pinn", text, **figures)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
