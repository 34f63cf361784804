"""Compare learning rates and methods on the 4,000 + 1,000 digits.

    python -m experiments.studies tuning --problems softmax --rates fixed
    python -m experiments.studies batches
    python -m experiments.studies paper --problem cnn --steps 200
    python -m experiments.studies report

Each run is kept as a file in RESULTS/runs and is not repeated while the file is there:
a study can be stopped and continued, and studies share what they have in common.
``report`` makes the tables and figures of what there is; each study ends with it.
"""

from pathlib import Path
from typing import Annotated

import tyro

from experiments.data import load_small
from experiments.studies import batches, tuning
from experiments.studies.runner import run_all

RESULTS = Path("experiments/results/digits")


def _study(module):
    def command(
        config: Annotated[module.Config, tyro.conf.arg(name="")],
        results: Path = RESULTS,
    ) -> None:
        run_all(module.runs(config), results / "runs", load_small())

    command.__doc__ = module.Config.__doc__
    return command


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    tyro.extras.subcommand_cli_from_dict(
        {"tuning": _study(tuning), "batches": _study(batches)},
        prog="python -m experiments.studies",
        description=__doc__,
        args=args,
    )


if __name__ == "__main__":
    main()
