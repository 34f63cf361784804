"""The table and the figures of training by perturbed activations."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from experiments import plotting, study
from experiments.records import read
from experiments.studies import forward
from experiments.studies.runs import load_all
from experiments.studies.tables import rate_name, show

HEADER = """# Training by perturbed activations

Made by `python -m experiments.studies forward` of the runs in `runs.jsonl` and
`cosines.jsonl`. Learning rates are those of the best accuracy on 1,000 of the 4,000
training digits, after as many steps on the others (one seed). *Tail only* is
`fomoh_ap()` with all parameters frozen whose gradient it does not know exactly.
Mean ± standard deviation over seeds; *train loss* is that of all training images at the
end.
"""
COLORS = dict(zip(forward.CONTENDERS, plt.colormaps["tab10"].colors))


def main(results: Path) -> None:
    """Write README.md and the figures of what there is."""
    kept = load_all(results / "runs.jsonl")
    parts = [HEADER]
    if not kept.empty:
        final = kept[kept.data != "validation"]
        parts += list(_problems(final, kept, results))
    if found := read(results / "cosines.jsonl"):
        parts += _cosines(pd.DataFrame(found), results)
    (results / "README.md").write_text("\n".join(parts))
    print(f"report: {results / 'README.md'}")


def _problems(final: pd.DataFrame, kept: pd.DataFrame, folder: Path) -> Iterator[str]:
    for name, problem in forward.PROBLEMS.items():
        mine = final[(final.problem == problem.model) & (final.data == problem.data)]
        for steps, group in mine.groupby("steps"):
            title = f"{problem.title}, batch {problem.batch_size:,}, {steps:,} steps"
            yield f"## {title}\n"
            yield _table(group, kept) + "\n"
            figure = f"{name}-{steps}.png"
            plotting.save(_curves(group, title), folder / figure)
            yield f"![Loss against steps and seconds]({figure})\n"


def _contenders(group: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    labels = group.run.map(forward.label_of)
    for label in forward.CONTENDERS:
        if (labels == label).any():
            yield label, group[labels == label]


def _table(group: pd.DataFrame, kept: pd.DataFrame) -> str:
    rows = []
    for label, mine in _contenders(group):
        run = mine.run.iloc[0]
        rows.append(
            {
                "method": label,
                "learning rate": rate_name(
                    run.learning_rate, forward.validated(kept, run)
                ),
                "train loss": show(mine, "train_loss"),
                "test loss": show(mine, "test_loss"),
                "test accuracy": show(mine, "test_accuracy"),
                "ms a step": f"{mine.milliseconds_per_step.median():.3g}",
                "seeds": len(mine),
            }
        )
    return study.table(rows)


def _curves(group: pd.DataFrame, title: str) -> plt.Figure:
    """Minibatch loss against steps and against seconds, without compilation."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), sharey=True)
    for label, mine in _contenders(group):
        curves = [np.array(curve, float) for curve in mine.curve]
        length = min(map(len, curves))
        losses = np.stack([curve[:length] for curve in curves])
        steps = (np.arange(length) + 0.5) * mine.steps_per_bin.iloc[0]
        seconds = steps * mine.milliseconds_per_step.median() / 1e3
        style = {"logarithmic": True, "label": label, "color": COLORS[label]}
        plotting.plot_seeds(left, steps, losses, **style)
        plotting.plot_seeds(right, seconds, losses, **style)
    plotting.dress(left, "y", xlabel="step", ylabel="minibatch loss")
    plotting.dress(right, "y", xlabel="seconds")
    left.get_legend().remove()
    figure.suptitle(title)
    return figure


def _cosines(frame: pd.DataFrame, folder: Path) -> list[str]:
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for (blocks, probes), mine in frame.groupby(["blocks", "probes"]):
        name = _setting(blocks, probes)
        axes.plot(mine.step, mine.cosine, "o-", ms=3, label=name)
    plotting.dress(axes, xlabel="step", ylabel="cosine with the gradient", ylim=(0, 1))
    plotting.save(figure, folder / "cosines.png")
    table = frame.pivot_table(
        index="step", columns=["blocks", "probes"], values="cosine"
    )
    table.columns = [_setting(*column) for column in table.columns]
    shown = table.map("{:.2f}".format).reset_index()
    return [
        "## Cosines with the gradient\n",
        "784-256-256-256-256-10, batch 1,024, along a run of `fomoh_ap()`.\n",
        study.table(shown) + "\n",
        "![Cosine against steps](cosines.png)\n",
    ]


def _setting(blocks: int, probes: int) -> str:
    return f"{blocks} blocks, {probes} probe{'s' * (probes > 1)}"
