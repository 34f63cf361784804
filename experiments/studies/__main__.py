"""Compare learning rates and methods on the 4,000 + 1,000 digits.

    python -m experiments.studies tuning --problems softmax --rates fixed
    python -m experiments.studies batches
    python -m experiments.studies paper --problem cnn --steps 200
    python -m experiments.studies forward --problems mlp
    python -m experiments.studies report

Each run is kept as a line of RESULTS/runs.jsonl and is not repeated while that is
there: a study can be stopped and continued, and studies share what they have in common.
``report`` makes the tables and figures of what there is; each study ends with it.
"""

from pathlib import Path
from typing import Annotated

import tyro

from experiments.data import load
from experiments.studies import cosines, forward, forward_report, paper, report, tuning
from experiments.studies.runner import run_all
from experiments.studies.runs import Run, load_all

RESULTS = Path("experiments/results/digits")
FORWARD = Path("experiments/results/forward")
NO_NAME = tyro.conf.arg(name="")
app = tyro.extras.SubcommandApp()


def do(runs: list[Run], results: Path) -> None:
    """Do the runs that are not kept yet, and report on all."""
    run_all(runs, results / "runs.jsonl", load("small"))
    report.main(results)


@app.command(name="tuning")
def tune(config: Annotated[tuning.Config, NO_NAME], results: Path = RESULTS) -> None:
    """FoMoH-KD with each learning rate of a grid, and tuning itself."""
    do(tuning.runs(config), results)


@app.command(name="batches")
def vary(config: Annotated[tuning.Batches, NO_NAME], results: Path = RESULTS) -> None:
    """Self-tuned FoMoH-KD on softmax regression, from small batches to the full one."""
    do(tuning.batches(config), results)


@app.command(name="paper")
def compare(config: Annotated[paper.Config, NO_NAME], results: Path = RESULTS) -> None:
    """The paper's methods at their best learning rates, constant and with a step."""
    do(paper.grid(config), results)
    do(paper.chosen(config, load_all(results / "runs.jsonl")), results)


@app.command(name="forward")
def perturb(
    config: Annotated[forward.Config, NO_NAME], results: Path = FORWARD
) -> None:
    """Training by perturbed activations, beside backpropagation and tail only."""
    file = results / "runs.jsonl"
    for make in (forward.grid, lambda c: forward.chosen(c, load_all(file))):
        runs = make(config)
        for data in dict.fromkeys(run.data for run in runs):
            mine = [run for run in runs if run.data == data]
            run_all(mine, file, load(data))
    if config.cosines:
        cosines.run_all(results / "cosines.jsonl", config.steps or cosines.STEPS)
    forward_report.main(results)


@app.command(name="report")
def write_report(results: Path = RESULTS) -> None:
    """Tables and figures of the runs that are kept; runs nothing."""
    report.main(results)
    if (folder := results.parent / "forward").exists():
        forward_report.main(folder)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    app.cli(prog="python -m experiments.studies", description=__doc__, args=args)


if __name__ == "__main__":
    main()
