"""Figures of curves over several seeds: the seeds faint behind their mean."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a figure is a file here, also where there is no display

import matplotlib.pyplot as plt
import numpy as np


def plot_seeds(
    axes: plt.Axes,
    x: np.ndarray,
    curves: np.ndarray,
    *,
    label: str,
    logarithmic: bool = False,
    **style: Any,
) -> None:
    """Draw one curve per seed, faint, and their mean.

    Args:
      axes: where to draw.
      x: shape ``[points]``.
      curves: shape ``[seeds, points]``.
      label: of the mean, in the legend.
      logarithmic: take the mean of the logarithms, which is what the eye expects on a
        logarithmic axis; an arithmetic mean there is the worst seed.
      **style: of the mean, as matplotlib takes it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(np.log(curves).mean(0)) if logarithmic else curves.mean(0)
    (line,) = axes.plot(x, mean, label=label, lw=1.8, zorder=3, **style)
    if len(curves) > 1:
        faint = {"color": line.get_color(), "ls": line.get_linestyle()}
        axes.plot(x, curves.T, lw=0.6, alpha=0.2, zorder=2, **faint)


def plot_quartiles(
    axes: plt.Axes, x: np.ndarray, curves: np.ndarray, *, label: str, **style: Any
) -> None:
    """Draw the median over the seeds, and a band between the quartiles.

    A median says what a seed does where some seeds converge and others do not, of which
    a mean of any kind says nothing.

    Args:
      axes: where to draw.
      x: shape ``[points]``.
      curves: shape ``[seeds, points]``; they may be infinite.
      label: of the median, in the legend.
      **style: of the median, as matplotlib takes it.
    """
    low, high = np.quantile(curves, (0.25, 0.75), axis=0, method="nearest")
    middle = np.median(curves, axis=0)  # as a table would have it
    (line,) = axes.plot(x, middle, label=label, lw=1.8, zorder=3, **style)
    band = {"color": line.get_color(), "alpha": 0.07, "lw": 0, "zorder": 2}
    axes.fill_between(x, low, high, **band)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure, with room for its labels."""
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
