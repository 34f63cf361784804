"""The figures of the report."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments import plotting
from experiments.studies import tables
from experiments.studies.runs import Result
from experiments.studies.summary import by_rate, final_loss

SELF_TUNED = {"color": "crimson"}


def curves_by_rate(by_k: dict[int, list[Result]], title: str, path: Path) -> None:
    """Minibatch loss against steps: a panel a k, a curve a learning rate."""
    columns = min(2, len(by_k))
    rows = -(-len(by_k) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.6 * columns + 1, 3.1 * rows + 0.4),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    styles = _rate_styles(by_k)
    for panel, (k, results) in zip(axes.flat, by_k.items()):
        for rate, group in by_rate(results).items():
            _curves(panel, group, label=_name(rate), **styles[rate])
        panel.set_title(f"k = {k}", fontsize=10)
    for spare in axes.flat[len(by_k) :]:
        spare.axis("off")
    _loss_axes(axes, [r for results in by_k.values() for r in results])
    _legend(axes, map(_name, styles), "learning rate")
    figure.suptitle(f"FoMoH-KD: {title}")
    plotting.save(figure, path)


def losses_by_k(by_k: dict[int, list[Result]], title: str, path: Path) -> None:
    """Final train loss against k: a line a learning rate, seeds as faint dots."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    ks = np.array(list(by_k))
    for rate, style in _rate_styles(by_k).items():
        groups = [by_rate(results).get(rate, []) for results in by_k.values()]
        losses = [_finite(map(final_loss, group)) for group in groups]
        means = [
            np.mean(x) if len(x) == len(group) > 0 else np.nan
            for x, group in zip(losses, groups)
        ]
        axes.plot(ks, means, "o-", label=_name(rate), ms=5, **style)
        for k, group in zip(ks, losses):
            axes.plot([k] * len(group), group, ".", ms=4, alpha=0.35, **_dot(style))
        lost = [k for k, x, group in zip(ks, losses, groups) if len(x) < len(group)]
        axes.plot(  # at the upper edge, whatever the loss there
            lost,
            [0.97] * len(lost),
            "x",
            ms=7,
            mew=2,
            transform=axes.get_xaxis_transform(),
            **_dot(style),
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="k",
        ylabel="final train loss",
        title=f"FoMoH-KD: {title}",
    )
    axes.set_xticks(ks, labels=map(str, ks), minor=False)
    axes.xaxis.set_minor_locator(plt.NullLocator())
    _plain_logarithm(axes)
    axes.grid(alpha=0.3, which="both")
    axes.legend(
        title="learning rate\n(× : a seed diverged)",
        fontsize=8,
        title_fontsize=8,
        bbox_to_anchor=(1.01, 1),
        loc="upper left",
        frameon=False,
    )
    plotting.save(figure, path)


def methods(results: list[Result], title: str, path: Path) -> None:
    """Minibatch loss against steps: a panel a schedule, a curve a method."""
    figure, axes = plt.subplots(
        1, 2, figsize=(10.5, 4), squeeze=False, sharex=True, sharey=True
    )
    chosen = tables.chosen(results)
    labels = list(dict.fromkeys(label for label, *_ in chosen))
    styles = {label: _method_style(label) for label in labels}
    names = {"constant": "constant learning rate", "step": "a tenth from 2/3 on"}
    for panel, schedule in zip(axes.flat, names):
        panel.set_title(names[schedule], fontsize=10)
        for label, rate, group, _ in chosen:
            # What tunes itself is a reference in both panels.
            if rate is None or group[0].run.schedule == schedule:
                _curves(panel, group, label=label, **styles[label])
    _loss_axes(axes, [r for _, _, group, _ in chosen for r in group])
    _legend(axes, labels, None)
    figure.suptitle(title)
    plotting.save(figure, path)


def _method_style(label: str) -> dict:
    if label.endswith(", self-tuned"):
        return _method_style(label.removesuffix(", self-tuned")) | {"ls": ":"}
    return {
        "FGD": {"color": "tab:gray"},
        "FoMoH": {"color": "tab:orange"},
        "FoMoH-2D": {"color": "yellowgreen"},
        "FoMoH-3D": {"color": "tab:green"},
        "FoMoH-10D": {"color": "darkslategray"},
        "FoMoH-BP": {"color": "tab:purple", "ls": "--"},
        "SGD": {"color": "tab:blue", "ls": "--"},
        "Adam": {"color": "tab:cyan", "ls": "--"},
    }[label]


def _curves(axes: plt.Axes, group: list[Result], **style) -> None:
    """The seeds of a configuration; one that diverged ends where it was stopped."""
    width, points = group[0].steps_per_bin, max(len(r.curve) for r in group)
    losses = np.full((len(group), points), np.nan)
    for row, result in zip(losses, group):
        row[: len(result.curve)] = np.array(result.curve, float)
    steps = np.minimum((np.arange(points) + 0.5) * width, group[0].run.steps)
    plotting.plot_seeds(axes, steps, losses, logarithmic=True, **style)


def _loss_axes(axes: np.ndarray, results: list[Result]) -> None:
    """From the least loss to a little above the first, whatever diverges."""
    values = _finite(x for r in results for x in r.curve if x is not None)
    first = np.median(_finite(r.first_loss or np.inf for r in results))
    for panel in axes.flat:
        panel.set(yscale="log", ylim=(0.85 * values.min(), 2 * first))
        _plain_logarithm(panel)
        panel.grid(alpha=0.3, which="both")
    for panel in axes[-1]:
        panel.set_xlabel("step")
    for panel in axes[:, 0]:
        panel.set_ylabel("minibatch loss")


def _plain_logarithm(axes: plt.Axes) -> None:
    """Ticks at 1, 2 and 5 without exponents: a loss spans a decade or two."""
    axes.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(plt.NullFormatter())


def _legend(axes: np.ndarray, labels: Iterable[str], title: str | None) -> None:
    """One for all the panels, beside the last of the first row."""
    found = {}
    for panel in axes.flat:
        for handle, label in zip(*panel.get_legend_handles_labels()):
            found.setdefault(label, handle)
    labels = list(labels)
    axes[0, -1].legend(
        [found[label] for label in labels],
        labels,
        title=title,
        fontsize=8,
        title_fontsize=8,
        bbox_to_anchor=(1.02, 1),
        loc="upper left",
        frameon=False,
    )


def _rate_styles(by_k: dict[int, list[Result]]) -> dict[float | None, dict]:
    rates = by_rate(r for results in by_k.values() for r in results)
    fixed = [rate for rate in rates if rate is not None]
    shades = plt.colormaps["viridis"](np.linspace(0, 0.92, len(fixed)))
    styles = {rate: {"color": shade} for rate, shade in zip(fixed, shades)}
    return styles | ({None: SELF_TUNED} if None in rates else {})


def _name(rate: float | None) -> str:
    return "self-tuned" if rate is None else f"{rate:g}"


def _dot(style: dict) -> dict:
    return {"color": style["color"]}


def _finite(values) -> np.ndarray:
    values = np.array(list(values), float)
    return values[np.isfinite(values)]
