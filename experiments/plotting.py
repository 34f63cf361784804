"""Figures of curves over several seeds: the seeds faint behind their mean."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a figure is a file here, also where there is no display

import matplotlib.pyplot as plt
import numpy as np


def plot_seeds(
    axes: plt.Axes, x: Any, curves: np.ndarray, logarithmic: bool = False, **style: Any
) -> None:
    """Draw one curve per seed, faint, and their mean.

    Args:
      axes: where to draw.
      x: shape ``[points]``.
      curves: shape ``[seeds, points]``.
      logarithmic: take the mean of the logarithms, which is what the eye expects on a
        logarithmic axis; an arithmetic mean there is the worst seed.
      **style: of the mean, as matplotlib takes it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(np.log(curves).mean(0)) if logarithmic else curves.mean(0)
    (line,) = axes.plot(x, mean, lw=1.8, zorder=3, **style)
    if len(curves) > 1:
        faint = {"color": line.get_color(), "ls": line.get_linestyle()}
        axes.plot(x, curves.T, lw=0.6, alpha=0.2, zorder=2, **faint)


def plot_quartiles(axes: plt.Axes, x: Any, curves: np.ndarray, **style: Any) -> None:
    """Draw the median over the seeds, and a band between the quartiles.

    Where some seeds converge and others do not, a median tells what a seed does, and a
    mean of any kind does not.

    Args:
      axes: where to draw.
      x: shape ``[points]``.
      curves: shape ``[seeds, points]``; they may be infinite.
      **style: of the median, as matplotlib takes it.
    """
    low, high = np.quantile(curves, (0.25, 0.75), axis=0, method="nearest")
    middle = np.median(curves, axis=0)  # as in a table
    (line,) = axes.plot(x, middle, lw=1.8, zorder=3, **style)
    band = {"color": line.get_color(), "alpha": 0.07, "lw": 0, "zorder": 2}
    axes.fill_between(x, low, high, **band)


def dress(
    axes: plt.Axes, log: str = "", legend: dict[str, Any] | None = None, **settings: Any
) -> None:
    """Set scales, labels, a grid, and a legend if there is something to name.

    Args:
      axes: that have been drawn on.
      log: which of them are logarithmic, such as ``"xy"``.
      legend: options of the legend.
      **settings: what ``axes.set`` takes.
    """
    axes.set(**{f"{name}scale": "log" for name in log}, **settings)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{"fontsize": 7.5} | (legend or {}))


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure, with room for its labels."""
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
