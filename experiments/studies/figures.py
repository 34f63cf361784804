"""The figures of the report."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from experiments import plotting
from experiments.methods import BACKWARD
from experiments.studies.runs import METHODS
from experiments.studies.tables import by_rate, chosen

SCHEDULES = {"constant": "constant learning rate", "step": "a tenth from 2/3 on"}
COLORS = ("tab:gray", "tab:orange", "yellowgreen", "tab:green", "darkslategray")
COLORS = dict(zip(METHODS, (*COLORS, "tab:purple", "tab:blue", "tab:cyan")))
GRID = {"squeeze": False, "sharex": True, "sharey": True}
BESIDE = {"fontsize": 8, "title_fontsize": 8, "loc": "upper left", "frameon": False}


def curves_by_rate(results: pd.DataFrame, title: str) -> plt.Figure:
    """Minibatch loss against steps: a panel a k, a curve a learning rate."""
    by_k = results.groupby("k")
    columns = min(2, len(by_k))
    rows = -(-len(by_k) // columns)
    size = 4.6 * columns + 1, 3.1 * rows + 0.4
    figure, axes = plt.subplots(rows, columns, figsize=size, **GRID)
    styles = _rate_styles(results)
    for panel, (k, mine) in zip(axes.flat, by_k):
        for rate, group in by_rate(mine).items():
            _curves(panel, group, **styles[rate])
        panel.set_title(f"k = {k}", fontsize=10)
    for spare in axes.flat[len(by_k) :]:
        spare.axis("off")
    _loss_axes(axes, results)
    _legend(axes, [style["label"] for style in styles.values()], "learning rate")
    figure.suptitle(f"FoMoH-KD: {title}")
    return figure


def losses_by_k(results: pd.DataFrame, title: str) -> plt.Figure:
    """Final train loss against k: a line a learning rate, seeds as faint dots."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    styles = _rate_styles(results)
    for rate, group in by_rate(results).items():
        color = {"color": styles[rate]["color"]}
        means = group.groupby("k").final.mean().replace(np.inf, np.nan)
        means = means.reindex(sorted(results.k.unique()))
        axes.plot(means.index, means, "o-", ms=5, **styles[rate])
        axes.plot(group.k, group.final, ".", ms=4, alpha=0.35, **color)
        lost = sorted(group.k[np.isinf(group.final)].unique())
        # At the upper edge, whatever the loss there.
        edge = {"transform": axes.get_xaxis_transform(), "ms": 7, "mew": 2}
        axes.plot(lost, [0.97] * len(lost), "x", **edge, **color)
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="final train loss")
    axes.set_title(f"FoMoH-KD: {title}")
    axes.set_xticks(means.index, labels=map(str, means.index), minor=False)
    axes.xaxis.set_minor_locator(plt.NullLocator())
    _plain_logarithm(axes)
    explained = "learning rate\n(× : a seed diverged)"
    axes.legend(title=explained, bbox_to_anchor=(1.01, 1), **BESIDE)
    return figure


def methods(results: pd.DataFrame, title: str) -> plt.Figure:
    """Minibatch loss against steps: a panel a schedule, a curve a method."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), **GRID)
    listed = chosen(results)
    for panel, (schedule, name) in zip(axes.flat, SCHEDULES.items()):
        panel.set_title(name, fontsize=10)
        for label, rate, group, _ in listed:
            backwards = group.method.iloc[0] in BACKWARD
            line = ":" if rate is None else "--" if backwards else "-"
            # A method that tunes itself is a reference in both panels.
            if rate is None or (group.schedule == schedule).all():
                color = COLORS[label.removesuffix(", self-tuned")]
                _curves(panel, group, label=label, color=color, ls=line)
    _loss_axes(axes, pd.concat(group for _, _, group, _ in listed))
    _legend(axes, list(dict.fromkeys(label for label, *_ in listed)), None)
    figure.suptitle(title)
    return figure


def _curves(axes: plt.Axes, group: pd.DataFrame, **style) -> None:
    """Draws the seeds of a configuration; a diverged one ends where it was stopped."""
    losses = pd.DataFrame(group.curve.tolist(), dtype=float).to_numpy()
    steps = (np.arange(losses.shape[1]) + 0.5) * group.steps_per_bin.iloc[0]
    steps = np.minimum(steps, group.steps.iloc[0])
    plotting.plot_seeds(axes, steps, losses, logarithmic=True, **style)


def _loss_axes(axes: np.ndarray, results: pd.DataFrame) -> None:
    """Limits the axes to losses between the least and a little above the first."""
    bottom = 0.85 * results.curve.explode().astype(float).min()
    top = 2 * results.first_loss.median()
    for panel in axes.flat:
        panel.set(yscale="log", ylim=(bottom, top))
        _plain_logarithm(panel)
    plt.setp(axes[-1], xlabel="step")
    plt.setp(axes[:, 0], ylabel="minibatch loss")


def _plain_logarithm(axes: plt.Axes) -> None:
    """Sets ticks at 1, 2 and 5 without exponents: a loss spans a decade or two."""
    axes.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(plt.NullFormatter())
    axes.grid(alpha=0.3, which="both")


def _legend(axes: np.ndarray, labels: list[str], title: str | None) -> None:
    """Draws one legend for all the panels, beside the last of the first row."""
    named = [zip(*panel.get_legend_handles_labels()) for panel in axes.flat]
    found = {label: handle for panel in named for handle, label in panel}
    handles = [found[label] for label in labels]
    place = {"bbox_to_anchor": (1.02, 1), **BESIDE}
    axes[0, -1].legend(handles, labels, title=title, **place)


def _rate_styles(results: pd.DataFrame) -> dict[float | None, dict]:
    rates = list(by_rate(results))
    fixed = [rate for rate in rates if rate is not None]
    shades = plt.colormaps["viridis"](np.linspace(0, 0.92, len(fixed)))
    colors = dict(zip(fixed, shades)) | {None: "crimson"}
    names = {rate: f"{rate:g}" for rate in fixed} | {None: "self-tuned"}
    return {rate: {"color": colors[rate], "label": names[rate]} for rate in rates}
