"""The Markdown tables of the report."""

import numpy as np
import pandas as pd

from experiments import study
from experiments.studies import paper
from experiments.studies.summary import best_rate, by_rate, growth, rate_name, show


def fixed_or_self_tuned(results: pd.DataFrame) -> str:
    """The best fixed learning rate of each k beside none at all."""
    rows = []
    for k, mine in results.groupby("k"):
        rate, groups = best_rate(mine), by_rate(mine)
        fixed, tuned = groups[rate], groups.get(None, mine[:0])
        # Of the mean train losses, over the seeds that both have.
        both = fixed.merge(tuned, on="seed")
        ratio = both.final_y.mean() / both.final_x.mean()
        seeds = sorted({len(group) for group in (fixed, tuned) if len(group)})
        rows.append(
            {
                "k": k,
                "best learning rate": rate_name(rate, mine),
                "train loss": show(fixed),
                "self-tuned train loss": show(tuned),
                "ratio": f"{ratio:.2f}" if np.isfinite(ratio) else study.NONE,
                "test accuracy": show(fixed, "test_accuracy"),
                "self-tuned test accuracy": show(tuned, "test_accuracy"),
                "self-tuned largest ÷ first": f"{growth(tuned):.2f}"
                if len(tuned)
                else study.NONE,
                "seeds": " / ".join(map(str, seeds)),
            }
        )
    return study.table(rows)


def every_rate(results: pd.DataFrame) -> str:
    """Final train loss of each learning rate and k."""
    ks = sorted(results.k.unique())
    return study.table(
        {"learning rate": "self-tuned" if rate is None else f"{rate:g}"}
        | {f"k = {k}": show(group[group.k == k]) for k in ks}
        for rate, group in by_rate(results).items()
    )


def batch_sizes(results: pd.DataFrame) -> str:
    """Largest minibatch loss after step ten over the first, and the train loss."""
    rows = []
    for size, group in results.groupby("batch_size"):
        row = {"batch size": f"{size:,}"}
        for k in sorted(results.k.unique()):
            cell = group[group.k == k]
            sound = len(cell) and not cell.diverged.any()
            row[f"k = {k}"] = (
                f"{growth(cell):.2f} ({show(cell)})" if sound else show(cell)
            )
        rows.append(row)
    return study.table(rows)


def methods(results: pd.DataFrame) -> str:
    """The methods of the paper, each at the learning rate of the least train loss."""
    fields = "train_loss", "train_accuracy", "test_loss", "test_accuracy"
    return study.table(
        {
            "method": label,
            "learning rate": rate_name(rate, tried),
            "schedule": None if rate is None else group.schedule.iloc[0],
            **{field.replace("_", " "): show(group, field) for field in fields},
            "ms a step": f"{group.milliseconds_per_step.median():.3g}",
            "seeds": len(group),
        }
        for label, rate, group, tried in chosen(results)
    )


def chosen(
    results: pd.DataFrame,
) -> list[tuple[str, float | None, pd.DataFrame, pd.DataFrame]]:
    """Label, learning rate, its results, and all that were tried, of each method."""
    listed = []
    for label, (method, k) in paper.METHODS.items():
        mine = results[(results.method == method) & (results.k == k)]
        for schedule in ("constant", "step"):
            tried = mine[mine.schedule == schedule]
            if (rate := best_rate(tried)) is not None:
                listed.append((label, rate, by_rate(tried)[rate], tried))
        tuned = mine[mine.learning_rate.isna()]
        if len(tuned):
            listed.append((f"{label}, self-tuned", None, tuned, tuned))
    return listed
