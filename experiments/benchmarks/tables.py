"""Run a table of the suite and write it as JSON."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from tqdm import tqdm

from experiments import study
from experiments.benchmarks import (
    depth,
    environment,
    hyperplane,
    operators,
    step,
    width,
)
from experiments.benchmarks.measurement import Limits, measure

TABLES: dict[str, Callable] = {
    "hyperplane": hyperplane.rows,
    "step": step.rows,
    "operators": operators.rows,
    "depth": depth.rows,
    "width": width.rows,
}
RESULTS = Path(__file__).parent / "results"

# Relative to the largest element. Rounding is a hundredth of these where nothing
# cancels; one curvature alone (k = 1) can be a small difference of large numbers.
TOLERANCE = {"float32": 1e-3, "tf32": 5e-2, "bfloat16": 2e-1}


@dataclasses.dataclass(frozen=True)
class Config:
    """How to measure."""

    quick: bool = False
    """Few rows and small sizes: about a minute for all the tables."""
    rows: str = ""
    """Only the rows whose name (as "CNN k=2 ") holds this. The name ends in a space, so
    that "k=1 " leaves out k = 10."""
    repeats: int = 15
    """Rounds in which each contender is timed once; with 0 the contenders are compiled
    and counted, and none is run."""
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"], tyro.conf.arg(aliases=["--dtype"])
    ] = "float32"
    """Arrays and products in float32, products in tf32, or all in bfloat16."""
    seconds_per_row: float = 60.0
    """A row that takes longer stops early, after three rounds at the least."""
    memory_limit: float = 4.0
    """GB of temporaries; a contender that needs more is counted and not run."""
    out: Path = RESULTS
    """The folder of the JSON files."""


def run(table: str, config: Config) -> list[Path]:
    """Measure one table, or all of them; the files that were written."""
    study.at_least(0, config, "repeats")
    jax.config.update("jax_enable_compilation_cache", False)
    described = environment.describe()
    names = list(TABLES) if table == "all" else [table]
    return [path for name in names if (path := _run_one(name, config, described))]


def _run_one(table: str, config: Config, described: dict[str, Any]) -> Path | None:
    dtype = jnp.dtype("bfloat16" if config.precision == "bfloat16" else "float32")
    limits = Limits(
        repeats=config.repeats,
        seconds=config.seconds_per_row,
        temporary_bytes=config.memory_limit * 1e9,
        tolerance=TOLERANCE[config.precision],
    )
    wanted = config.rows.lower()
    rows = [
        row
        for row in TABLES[table](config.quick, dtype)
        if wanted in f"{row.name} ".lower()
    ]
    if not rows:
        print(f"{table}: no row's name holds {config.rows!r}")
        return None
    options = dataclasses.asdict(config)
    del options["out"]  # where the file lies is no condition of the measurement
    result = {"table": table, "environment": described, "config": options, "rows": []}
    path = config.out / _file_name(table, config, described)
    path.parent.mkdir(parents=True, exist_ok=True)
    products = "tensorfloat32" if config.precision == "tf32" else "float32"
    with jax.default_matmul_precision(products):
        for row in (bar := tqdm(rows, unit="row")):
            bar.set_postfix_str(f"{table}: {row.name}")
            result["rows"].append(measure(row, limits))
            # After each row, so that an interruption costs one row.
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"{table}: {path}")
    return path


def _file_name(table: str, config: Config, described: dict[str, Any]) -> str:
    """A part, a quick run, counts alone, or another precision must not overwrite the
    whole."""
    parts = [table, environment.slug(described["device"]), f"jax{described['jax']}"]
    parts += [config.precision] if config.precision != "float32" else []
    parts += ["quick"] if config.quick else []
    parts += [] if config.repeats else ["counts"]
    parts += [environment.slug(config.rows)] if config.rows else []
    return "-".join(parts) + ".json"
