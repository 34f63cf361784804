"""The Markdown tables of the report."""

import math

import numpy as np

from experiments.plotting import table
from experiments.studies import paper
from experiments.studies.runs import Result
from experiments.studies.summary import (
    at_edge,
    best_rate,
    by_rate,
    final_loss,
    growth,
    show,
)


def fixed_or_self_tuned(by_k: dict[int, list[Result]]) -> str:
    """The best fixed learning rate of each k beside none at all."""
    rows = []
    for k, results in by_k.items():
        rate, groups = best_rate(results), by_rate(results)
        fixed, tuned = groups.get(rate, []) if rate else [], groups.get(None, [])
        rows.append(
            {
                "k": str(k),
                "best learning rate": _rate(rate, results),
                "train loss": show(fixed, "train_loss"),
                "self-tuned train loss": show(tuned, "train_loss"),
                "ratio": _ratio(fixed, tuned),
                "test accuracy": show(fixed, "test_accuracy"),
                "self-tuned test accuracy": show(tuned, "test_accuracy"),
                "self-tuned largest ÷ first": f"{growth(tuned):.2f}" if tuned else "–",
                "seeds": _seeds(fixed, tuned),
            }
        )
    return _table(rows)


def every_rate(by_k: dict[int, list[Result]]) -> str:
    """Final train loss of each learning rate and k."""
    rates = by_rate(r for results in by_k.values() for r in results)
    rows = [
        {"learning rate": "self-tuned" if rate is None else f"{rate:g}"}
        | {
            f"k = {k}": show(by_rate(results).get(rate, []), "train_loss")
            for k, results in by_k.items()
        }
        for rate in rates
    ]
    return _table(rows)


def batch_sizes(results: list[Result]) -> str:
    """Largest minibatch loss after step ten over the first, and the train loss."""
    sizes = sorted({r.run.batch_size for r in results})
    rows = []
    for size in sizes:
        row = {"batch size": f"{size:,}"}
        for k in sorted({r.run.k for r in results}):
            cell = [r for r in results if (r.run.batch_size, r.run.k) == (size, k)]
            row[f"k = {k}"] = "–"
            if cell and not any(r.diverged for r in cell):
                row[f"k = {k}"] = f"{growth(cell):.2f} ({show(cell, 'train_loss')})"
            elif cell:
                row[f"k = {k}"] = show(cell, "train_loss")
        rows.append(row)
    return _table(rows)


def methods(results: list[Result]) -> str:
    """The methods of the paper, each at the learning rate of the least train loss."""
    rows = []
    for label, rate, group, tried in chosen(results):
        rows.append(
            {
                "method": label,
                "learning rate": _rate(rate, tried),
                "schedule": "–" if rate is None else group[0].run.schedule,
                "train loss": show(group, "train_loss"),
                "train accuracy": show(group, "train_accuracy"),
                "test loss": show(group, "test_loss"),
                "test accuracy": show(group, "test_accuracy"),
                "ms a step": f"{_step_time(group):.3g}",
                "seeds": str(len(group)),
            }
        )
    return _table(rows)


def chosen(
    results: list[Result],
) -> list[tuple[str, float | None, list[Result], list[Result]]]:
    """Label, learning rate, its results, and all that were tried, of each method."""
    listed = []
    for label, (method, k) in paper.METHODS.items():
        mine = [r for r in results if (r.run.method, r.run.k) == (method, k)]
        for schedule in ("constant", "step"):
            tried = [r for r in mine if r.run.schedule == schedule]
            rate = best_rate(tried)
            if rate is not None:
                listed.append((label, rate, by_rate(tried)[rate], tried))
        if tuned := by_rate(mine).get(None):
            listed.append((f"{label}, self-tuned", None, tuned, tuned))
    return listed


def _rate(rate: float | None, tried: list[Result]) -> str:
    if rate is None:
        return "–"
    return f"{rate:g}{' (edge)' if at_edge(rate, tried) else ''}"


def _ratio(fixed: list[Result], tuned: list[Result]) -> str:
    """Of the mean train losses, over the seeds that both have."""
    both = {r.run.seed for r in fixed} & {r.run.seed for r in tuned}
    if not both:
        return "–"
    mean = lambda group: np.mean([final_loss(r) for r in group if r.run.seed in both])
    ratio = mean(tuned) / mean(fixed)
    return f"{ratio:.2f}" if math.isfinite(ratio) else "–"


def _seeds(*groups: list[Result]) -> str:
    numbers = {len(group) for group in groups if group}
    return " / ".join(str(n) for n in sorted(numbers))


def _step_time(group: list[Result]) -> float:
    return float(np.median([r.milliseconds_per_step for r in group]))


def _table(rows: list[dict[str, str]]) -> str:
    return table({name: [row[name] for row in rows] for name in rows[0]})
