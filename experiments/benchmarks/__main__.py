"""The library beside nested ``jvp``, reverse mode, ``jet``, folx and asdex.

python -m experiments.benchmarks all --quick
python -m experiments.benchmarks hyperplane --rows "CNN k=2"
python -m experiments.benchmarks hyperplane --repeats 0
python -m experiments.benchmarks report experiments/benchmarks/results/*.json
python -m experiments.benchmarks report one.json other.json --compare
"""

import functools
import json
from pathlib import Path

import tyro

from experiments import plotting
from experiments.benchmarks import report, tables
from experiments.benchmarks.figure import draw, draw_overview

app = tyro.extras.SubcommandApp()
for table in (*tables.TABLES, "all"):
    app.command(functools.partial(tables.run, table), name=table)


@app.command(name="report")
def report_files(
    files: tyro.conf.Positional[tuple[Path, ...]],
    figure: Path | None = None,
    compare: bool = False,
) -> None:
    """Print Markdown tables of JSON files, and draw what they hold into a figure.

    Args:
      files: as the tables write them.
      figure: a PNG; by default ``benchmarks.png`` beside the first file. An overview is
        drawn beside it.
      compare: print one table, of the hyperplane files' ratios of time side by side.
    """
    results = [json.loads(path.read_text()) for path in files]
    sections = map(report.section, results)
    print(report.comparison(results) if compare else "\n\n".join(sections))
    if drawn := draw(results):
        path = figure or files[0].parent / "benchmarks.png"
        plotting.save(drawn, path)
        print(f"\nfigure: {path}")
    if drawn := draw_overview(results):
        path = (figure or files[0]).parent / "overview.png"
        plotting.save(drawn, path)
        print(f"figure: {path}")


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    app.cli(prog="python -m experiments.benchmarks", description=__doc__, args=args)


if __name__ == "__main__":
    main()
