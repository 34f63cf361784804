"""Tables and figures of the results that are kept."""

from pathlib import Path

from experiments.studies import figures, tables
from experiments.studies.runs import Result, load_all
from experiments.studies.summary import Setting, by_setting

HEADER = """\
# Comparisons on the digits

Made by `python -m experiments.studies report` of the runs in `runs.jsonl`, which
`python -m experiments.studies --help` makes: 4,000 of the 5,000 digits of
`experiments.data.load_small` to train, 1,000 to test. The train loss is that of all
4,000 at the end. Mean ± standard deviation over seeds. A run has *diverged* when a
minibatch loss is not finite, or after the tenth step ten times the first; *largest ÷
first* is the worst such ratio of any seed. Learning rates are picked by the train loss;
*(edge)* says that none beyond was tried. Times are medians over a run's steps, on the
machine that its line names and with whatever else that was doing.
"""


def main(results: Path) -> None:
    """Write README.md and the figures."""
    kept = load_all(results / "runs.jsonl")
    if not kept:
        raise SystemExit(f"There are no runs in {results / 'runs.jsonl'} yet.")
    parts = [HEADER, *_tuning(kept, results), *_batches(kept), *_paper(kept, results)]
    (results / "README.md").write_text("\n".join(parts))
    print(f"report: {results / 'README.md'}")


def _tuning(kept: list[Result], folder: Path) -> list[str]:
    parts = []
    for setting, results in _in_order(kept):
        by_k = {
            k: group
            for k, group in sorted(_by_k(results).items())
            if any(r.run.learning_rate is not None for r in group)
        }
        if not by_k:
            continue
        curves = f"tuning-{setting.slug}.png"
        losses = f"tuning-{setting.slug}-by-k.png"
        figures.curves_by_rate(by_k, setting.title, folder / curves)
        figures.losses_by_k(by_k, setting.title, folder / losses)
        parts += [
            f"### {setting.title}\n",
            tables.fixed_or_self_tuned(by_k) + "\n",
            "Train loss at the end, of every learning rate:\n",
            tables.every_rate(by_k) + "\n",
            f"![Final train loss against k]({losses})\n",
            f"![Minibatch loss against steps]({curves})\n",
        ]
    return ["## FoMoH-KD with a learning rate and without\n", *parts] if parts else []


def _batches(kept: list[Result]) -> list[str]:
    tuned = [r for r in kept if r.run.learning_rate is None]
    parts = []
    for problem, steps in sorted({(r.run.problem, r.run.steps) for r in tuned}):
        results = [r for r in tuned if (r.run.problem, r.run.steps) == (problem, steps)]
        if len({r.run.batch_size for r in results}) > 1:
            parts += [
                f"### {problem}, self-tuned, {steps:,} steps\n",
                "Largest minibatch loss after the tenth step over the first, and in "
                "brackets the train loss at the end:\n",
                tables.batch_sizes(results) + "\n",
            ]
    return ["## Batch sizes\n", *parts] if parts else []


def _paper(kept: list[Result], folder: Path) -> list[str]:
    parts = []
    for setting, results in _in_order(kept):
        if {r.run.method for r in results} == {"fomoh_kd"}:
            continue
        name = f"paper-{setting.slug}.png"
        figures.methods(results, setting.title, folder / name)
        parts += [
            f"### {setting.title}\n",
            tables.methods(results) + "\n",
            f"![Minibatch loss against steps]({name})\n",
        ]
    return ["## The methods of the paper\n", *parts] if parts else []


def _in_order(kept: list[Result]) -> list[tuple[Setting, list[Result]]]:
    """Simple problems first."""
    order = ["softmax", "mlp", "cnn"]
    return sorted(by_setting(kept).items(), key=lambda x: (order.index(x[0][0]), x[0]))


def _by_k(results: list[Result]) -> dict[int, list[Result]]:
    """FoMoH-KD with a constant learning rate, or none."""
    groups: dict[int, list[Result]] = {}
    for result in results:
        if (result.run.method, result.run.schedule) == ("fomoh_kd", "constant"):
            groups.setdefault(result.run.k, []).append(result)
    return groups
