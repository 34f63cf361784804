"""Run a table of the suite and write it as JSON."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tqdm import tqdm

from experiments import study
from experiments.benchmarks import (
    depth,
    directions,
    environment,
    gradient,
    hessian,
    hyperplane,
    kinetic,
    networks,
    nodes,
    operators,
    residual,
    sparse,
    stde,
    step,
)
from experiments.benchmarks.measurement import Limits, Row, measure

TABLES: dict[str, Callable] = {
    "hyperplane": hyperplane.rows,
    "step": step.rows,
    "directions": directions.rows,
    "operators": operators.rows,
    "hessian": hessian.rows,
    "sparse": sparse.rows,
    "nodes": nodes.rows,
    "kinetic": kinetic.rows,
    "pinn": residual.rows,
    "stde": stde.rows,
    "networks": networks.rows,
    "gradient": gradient.rows,
    "depth": depth.rows,
    "width": hyperplane.chunked_rows,
}
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a measurement."""

    quick: bool = False
    """Few rows and small sizes: about a minute for all the tables."""
    scale: int = 1
    """Factor of every batch: a large device is not busy with the sizes here."""
    rows: str = ""
    """Only the rows whose name (as "CNN k=2 ") holds this. The name ends in a space, so
    that "k=1 " leaves out k = 10."""
    repeats: int = 15
    """Rounds in which each contender is timed once; with 0 the contenders are compiled
    and counted, and none is run."""
    seconds_per_row: float = 60.0
    """A row that takes longer stops early, after three rounds at the least."""
    without: tuple[str, ...] = ()
    """Rivals to leave out, by name, as "jax.hessian": one that hangs is not skipped."""
    out: Path = RESULTS
    """The folder of the JSON files."""

    def kept(self, row: Row) -> Row:
        """The row without the rivals to leave out."""
        make = row.contenders
        chosen = lambda: {k: c for k, c in make().items() if k not in self.without}
        return row._replace(contenders=chosen) if self.without else row


def run(table: str, config: Annotated[Config, tyro.conf.arg(name="")]) -> None:
    """Measure one table, or all of them."""
    study.at_least(0, config, "repeats")
    study.at_least(1, config, "scale")
    jax.config.update("jax_enable_compilation_cache", False)
    described = environment.describe()
    for name in TABLES if table == "all" else [table]:
        _run_one(name, config, described)


def _run_one(table: str, config: Config, described: dict[str, Any]) -> None:
    limits = Limits(config.repeats, config.seconds_per_row)
    wanted = lambda row: config.rows.lower() in f"{row.name} ".lower()
    rows = list(filter(wanted, TABLES[table](config.quick, config.scale)))
    if not rows:
        print(f"{table}: no row for --rows {config.rows!r} --scale {config.scale}")
        return
    options = dataclasses.asdict(config) | {"precision": "float32"}
    del options["out"]  # where the file lies is no condition of the measurement
    result = {"table": table, "environment": described, "config": options, "rows": []}
    path = config.out / _file_name(table, config, described)
    path.parent.mkdir(parents=True, exist_ok=True)
    with jax.default_matmul_precision("float32"):
        for row in (bar := tqdm(rows, unit="row")):
            bar.set_postfix_str(f"{table}: {row.name}")
            result["rows"].append(measure(config.kept(row), limits))
            # Written after each row, so that an interruption costs one row.
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"{table}: {path}")


def _file_name(table: str, config: Config, described: dict[str, Any]) -> str:
    """A name by the options, so that a partial table does not overwrite a whole one."""
    parts = (
        *(table, environment.slug(described["device"]), f"jax{described['jax']}"),
        "quick" if config.quick else "",
        f"scale{config.scale}" if config.scale > 1 else "",
        "" if config.repeats else "counts",
        environment.slug(config.rows),
    )
    return "-".join(filter(None, parts)) + ".json"
