"""Results grouped by configuration, and the Markdown tables of the report."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from experiments import study
from experiments.studies.runs import METHODS, SIZES, Run

Chosen = tuple[str, float | None, pd.DataFrame, pd.DataFrame]


def by_setting(results: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Title, file name and results of each setting, simple problems first."""
    settings = dict(list(results.groupby(["problem", "batch_size", "steps"])))
    simple_first = lambda key: (list(SIZES).index(key[0]), key)
    for problem, size, steps in sorted(settings, key=simple_first):
        group = settings[problem, size, steps]
        title = f"{problem}, batch {size:,}, {steps:,} steps"
        yield title, f"{problem}-batch{size}-steps{steps}", group


def by_rate(results: pd.DataFrame) -> dict[float | None, pd.DataFrame]:
    """The results of each learning rate, from large to small; none at the end."""
    ordered = results.sort_values("learning_rate", ascending=False, kind="stable")
    groups = ordered.groupby("learning_rate", sort=False, dropna=False)
    return {None if np.isnan(rate) else rate: group for rate, group in groups}


def of_kind(results: pd.DataFrame, kind: Run) -> pd.DataFrame:
    """The results that differ from a run by learning rate and seed alone."""
    plain = lambda run: dataclasses.replace(run, learning_rate=None, seed=0)
    return results[results.run.map(plain) == plain(kind)]


def best_rate(results: pd.DataFrame) -> float | None:
    """The learning rate of the least mean train loss; None if there is none.

    The mean is over the seeds that all the learning rates have, so that more seeds of
    one neither help nor harm it. The test images have no influence.
    """
    fixed = results.dropna(subset="learning_rate")
    if fixed.empty:
        return None
    losses = fixed.pivot(index="learning_rate", columns="seed", values="final")[::-1]
    shared = losses.dropna(axis="columns")
    return float((losses if shared.empty else shared).mean(axis="columns").idxmin())


def rate_name(rate: float | None, tried: pd.DataFrame) -> str:
    """A learning rate, marked if a better one may lie outside those that were tried."""
    if rate is None:
        return study.NONE
    rates = tried.learning_rate
    return f"{rate:g}{' (edge)' if rate in (rates.min(), rates.max()) else ''}"


def show(results: pd.DataFrame, field: str = "train_loss") -> str:
    """Mean ± standard deviation over the seeds, or how many of them have diverged."""
    if results.empty:
        return study.NONE
    if diverged := results.diverged.sum():
        return f"{diverged}/{len(results)} diverged" if len(results) > 1 else "diverged"
    return study.mean_and_deviation(results[field])


def growth(results: pd.DataFrame) -> str:
    """The largest minibatch loss after the tenth step over the first, of all seeds."""
    ratios = (results.largest_loss / results.first_loss).fillna(np.inf)
    return f"{ratios.max():.2f}" if len(results) else study.NONE


def fixed_or_self_tuned(results: pd.DataFrame) -> str:
    """The best fixed learning rate of each k beside none at all."""
    rows = []
    for k, mine in results.groupby("k"):
        rate, groups = best_rate(mine), by_rate(mine)
        fixed, tuned = groups[rate], groups.get(None, mine[:0])
        # The ratio of the mean train losses, over the seeds that both have.
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
                "self-tuned largest ÷ first": growth(tuned),
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
            row[f"k = {k}"] = f"{growth(cell)} ({show(cell)})" if sound else show(cell)
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


def chosen(results: pd.DataFrame) -> list[Chosen]:
    """Label, learning rate, its results, and all that were tried, of each method."""
    listed = []
    for label, (method, k) in METHODS.items():
        mine = results[(results.method == method) & (results.k == k)]
        for schedule in ("constant", "step"):
            tried = mine[mine.schedule == schedule]
            if (rate := best_rate(tried)) is not None:
                listed.append((label, rate, by_rate(tried)[rate], tried))
        tuned = mine[mine.learning_rate.isna()]
        if len(tuned):
            listed.append((f"{label}, self-tuned", None, tuned, tuned))
    return listed
