"""Tables and figures of the results that are kept."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from experiments import plotting
from experiments.studies import figures, tables
from experiments.studies.runs import load_all
from experiments.studies.tables import by_setting

HEADER = """# Comparisons on the digits

Made by `python -m experiments.studies report` of the runs in `runs.jsonl`; what the
words mean is said in [experiments](../../README.md).
"""
BATCHES = "Largest minibatch loss after step ten ÷ the first (final train loss):\n"


def main(results: Path) -> None:
    """Write README.md and the figures."""
    kept = load_all(results / "runs.jsonl")
    if kept.empty:
        raise SystemExit(f"There are no runs in {results / 'runs.jsonl'} yet.")
    sections = {
        "FoMoH-KD with a learning rate and without": list(_tuning(kept, results)),
        "Batch sizes": list(_batches(kept)),
        "The methods of the paper": list(_paper(kept, results)),
    }
    parts = [HEADER]
    for title, found in sections.items():
        parts += [f"## {title}\n", *found] if found else []
    (results / "README.md").write_text("\n".join(parts))
    print(f"report: {results / 'README.md'}")


def _tuning(kept: pd.DataFrame, folder: Path) -> Iterator[str]:
    constant = kept[(kept.method == "fomoh_kd") & (kept.schedule == "constant")]
    for title, slug, results in by_setting(constant):
        fixed = results.groupby("k").learning_rate.transform("count") > 0
        if not fixed.any():
            continue
        mine = results[fixed]  # of each k that has a learning rate
        curves, losses = f"tuning-{slug}.png", f"tuning-{slug}-by-k.png"
        plotting.save(figures.curves_by_rate(mine, title), folder / curves)
        plotting.save(figures.losses_by_k(mine, title), folder / losses)
        yield f"### {title}\n"
        yield tables.fixed_or_self_tuned(mine) + "\n"
        yield "Train loss at the end, of every learning rate:\n"
        yield tables.every_rate(mine) + "\n"
        yield f"![Final train loss against k]({losses})\n"
        yield f"![Minibatch loss against steps]({curves})\n"


def _batches(kept: pd.DataFrame) -> Iterator[str]:
    tuned = kept[kept.learning_rate.isna()]
    for (problem, steps), results in tuned.groupby(["problem", "steps"]):
        if results.batch_size.nunique() > 1:
            yield f"### {problem}, self-tuned, {steps:,} steps\n"
            yield BATCHES
            yield tables.batch_sizes(results) + "\n"


def _paper(kept: pd.DataFrame, folder: Path) -> Iterator[str]:
    for title, slug, results in by_setting(kept):
        if set(results.method) != {"fomoh_kd"}:
            name = f"paper-{slug}.png"
            plotting.save(figures.methods(results, title), folder / name)
            yield f"### {title}\n"
            yield tables.methods(results) + "\n"
            yield f"![Minibatch loss against steps]({name})\n"
