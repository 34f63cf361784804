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
from tqdm import tqdm

from experiments.pinn import report
from experiments.pinn.comparison import compare
from experiments.pinn.config import Config
from experiments.pinn.equations import EQUATIONS
from experiments.pinn.training import Run, make_training


def main(config: Config) -> None:
    """Train, compare, and write what came out."""
    _check(config)
    jax.config.update("jax_enable_x64", config.precision == "float64")
    runs = train(config) if config.seeds else {}
    records = compare(config) if config.dimensions else []
    folder = config.out / "pinn"
    folder.mkdir(parents=True, exist_ok=True)
    text = report.summary(config, runs, records)
    (folder / "table.md").write_text(text + "\n")
    print(text)
    if runs:
        report.draw(runs, folder / "pinn.png")
        print(f"\nfigure: {folder / 'pinn.png'}")


def train(config: Config) -> dict[str, list[Run]]:
    """Every seed of every equation."""
    runs = {name: [] for name in config.equations}
    bar = tqdm(total=len(runs) * config.seeds, unit="run")
    for name, seeds in runs.items():
        run = make_training(EQUATIONS[name], config)
        for seed in range(config.seeds):
            bar.set_postfix_str(f"{name}, seed {seed}")
            seeds.append(run(seed))
            bar.update()
    bar.close()
    return runs


def _check(config: Config) -> None:
    if not config.equations or not config.hidden:
        raise SystemExit("--equations and --hidden need at least one of their kind.")
    if min(config.points, config.every, *config.hidden, *config.dimensions) < 1:
        raise SystemExit(
            "--points, --every, --hidden and --dimensions must be at least 1."
        )
    counts = config.adam_steps, config.lbfgs_steps, config.seeds, config.repeats
    if min(counts) < 0:
        raise SystemExit(
            "--adam-steps, --lbfgs-steps, --seeds and --repeats must not be negative."
        )
    if not config.seeds and not config.dimensions:
        raise SystemExit("--seeds 0 without --dimensions leaves nothing to do.")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
