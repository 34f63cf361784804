"""Functions that all studies use: they check options and write tables."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from experiments import plotting

RESULTS = Path("experiments/results")
NONE = "–"  # what a table shows where there is no number


def at_least(least: int, config: Any, *names: str) -> None:
    """Ends the program if an option is smaller, or has no elements."""
    for name in names:
        value = getattr(config, name)
        if not np.size(value) or np.min(value) < least:
            option = f"--{name.replace('_', '-')}"
            raise SystemExit(f"{option} must be at least {least}; got {value}.")


def progress(items: Mapping[str, Any], unit: str) -> Iterator[tuple[str, Any]]:
    """The items of a dictionary, with a progress bar that names them."""
    for name, item in (bar := tqdm(items.items(), unit=unit)):
        bar.set_postfix_str(name)
        yield name, item


def table(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of rows, the first column aligned to the left."""
    frame = pd.DataFrame(rows, dtype=object).fillna(NONE)
    sides = ["left"] + ["right"] * (frame.shape[1] - 1)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=sides)


def mean_and_deviation(values: Iterable[float], digits: int = 3) -> str:
    """``mean ± standard deviation`` over seeds, or the value if there is one seed."""
    series = pd.Series(values, dtype=float)
    mean, deviation = (f"{x:.{digits}f}" for x in (series.mean(), series.std()))
    return mean if len(series) == 1 else f"{mean} ± {deviation}"


def write(folder: Path, text: str, file: str = "table.md", **figures: Any) -> None:
    """Writes and prints the tables of a study, and writes its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text + "\n")
    print(text + "\n")
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        plotting.save(figure, path)
        print(f"figure: {path}")
