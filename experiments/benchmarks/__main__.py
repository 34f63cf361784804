"""The library beside nested ``jvp``, reverse mode, ``jet`` and folx.

python -m experiments.benchmarks all --quick
python -m experiments.benchmarks hyperplane --rows "CNN k=2"
python -m experiments.benchmarks hyperplane --repeats 0
python -m experiments.benchmarks report experiments/benchmarks/results/*.json
python -m experiments.benchmarks report one.json other.json --compare
"""

from collections.abc import Callable
from typing import Annotated

import tyro

from experiments.benchmarks import report, tables


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    commands = {name: _command(name) for name in (*tables.TABLES, "all")}
    tyro.extras.subcommand_cli_from_dict(
        {**commands, "report": report.main},
        prog="python -m experiments.benchmarks",
        description=__doc__,
        args=args,
    )


def _command(table: str) -> Callable:
    def command(config: Annotated[tables.Config, tyro.conf.arg(name="")]) -> None:
        tables.run(table, config)

    command.__doc__ = (
        "Measure all the tables." if table == "all" else f"Measure the {table} table."
    )
    return command


if __name__ == "__main__":
    main()
