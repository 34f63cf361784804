"""Results grouped by configuration, and what is said of a group."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from experiments import study
from experiments.studies.runs import Run

SETTING = ["problem", "batch_size", "steps"]  # what comparable runs have in common


def by_setting(results: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Title, file name and results of each setting, simple problems first."""
    order = lambda column: (
        column.map(["softmax", "mlp", "cnn"].index)
        if column.name == "problem"
        else column
    )
    ordered = results.sort_values(SETTING, key=order, kind="stable")
    for (problem, size, steps), group in ordered.groupby(SETTING, sort=False):
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

    Over the seeds that all the learning rates have, so that one which got more of them
    is neither better nor worse off. The test images have no say.
    """
    fixed = results.dropna(subset="learning_rate")
    if fixed.empty:
        return None
    losses = fixed.pivot(index="learning_rate", columns="seed", values="final")[::-1]
    shared = losses.dropna(axis="columns")
    return float((losses if shared.empty else shared).mean(axis="columns").idxmin())


def rate_name(rate: float | None, tried: pd.DataFrame) -> str:
    """And whether a better one may lie outside those that were tried."""
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


def growth(results: pd.DataFrame) -> float:
    """The largest minibatch loss after the tenth step over the first, of all seeds."""
    return (results.largest_loss / results.first_loss).fillna(np.inf).max()
