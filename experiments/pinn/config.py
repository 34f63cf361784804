"""What the command line can change."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Config:
    """Poisson's equation and an anisotropic one in the disc, by a tanh network."""

    equations: tuple[Literal["poisson", "anisotropic"], ...] = (
        "poisson",
        "anisotropic",
    )
    """What to solve and to compare."""
    hidden: tuple[int, ...] = (32, 32, 32)
    """Widths of the network's hidden layers."""
    points: int = 1024
    """Points in the disc, drawn once a seed, and in the balls of the comparison."""
    adam_steps: int = 300
    """Iterations of Adam, with which the training starts."""
    lbfgs_steps: int = 3000
    """Iterations of L-BFGS, with which it ends."""
    every: int = 100
    """Iterations between two measurements of the error."""
    seeds: int = 3
    """Random initialisations; 0 for the comparison alone."""
    precision: Literal["float32", "float64"] = "float64"
    """Of the training and of the comparison."""
    dimensions: tuple[int, ...] = (2, 10, 50)
    """Of the balls in which the ways to the operator are compared."""
    repeats: int = 15
    """Rounds of the comparison in which each way is timed once; 0 to count alone."""
    seconds_per_row: float = 15.0
    """A row of the comparison that takes longer stops early, after three rounds."""
    out: Path = Path("experiments/results")
    """A folder; the results are in its folder pinn."""
