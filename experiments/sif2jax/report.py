"""Tables of the problems solved, and Moré and Wild's performance profiles."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from experiments import plotting, study
from experiments.records import Record, read

TOLERANCES = (1e-3, 1e-6)
STYLES = [(color, line) for color in ("black", "0.6") for line in ("-", "--", ":")]
HEADER = """# Unconstrained problems of CUTEst

Made by `python -m experiments.sif2jax --report` of the runs in `runs.jsonl`
({environments}). {problems} problems with at most {variables} variables, for {steps}
steps, or fewer if they take more than a minute. (A step of optimistix's solvers is here
eight evaluations of the loss.) A problem counts as solved to a
tolerance τ if a method comes to within τ of the best reduction that any of them found:
f ≤ f* + τ (f₀ - f*). (Moré and Wild, 2009.) Ours are `solvers.trust_region()` along
`directions.coordinates()`, of one radius a step, or of five and `scaled=True`. Their
models are of `plans.forward()`, and above 25 variables of `plans.adjoint()`.
"""


def main(file: Path) -> None:
    """Write README.md and the figure beside the runs."""
    if not (records := read(file)):
        raise SystemExit(f"There are no runs in {file} yet.")
    costs = {tolerance: costs_to(records, tolerance) for tolerance in TOLERANCES}
    done = [record for record in records if "losses" in record]
    parts = [
        HEADER.format(
            environments="; ".join(sorted({r["environment"] for r in done})),
            problems=len({r["problem"] for r in done}),
            variables=max(r["variables"] for r in done),
            steps=max(r["steps"] for r in done),
        ),
        study.table(_rows(costs, done)) + "\n",
        "![Share of the problems by time over that of the fastest](profiles.png)\n",
    ]
    for method in dict.fromkeys(record["method"] for record in done):
        if method.startswith("trust region"):
            strict, lost = TOLERANCES[-1], _lost(costs[TOLERANCES[-1]], method)
            parts.append(f"Not solved to {strict:g} by {method}, and by whom:\n")
            parts.append("\n".join(lost) + "\n")
    plotting.save(_profiles(costs), file.parent / "profiles.png")
    (file.parent / "README.md").write_text("\n".join(parts) + "\n")
    print(f"report: {file.parent / 'README.md'}")


def costs_to(records: list[Record], tolerance: float) -> pd.DataFrame:
    """The steps to the tolerance, by problem and method; infinite where it is missed.

    Beside them, under ``seconds``, the same in seconds.
    """
    rows = []
    everything = pd.DataFrame(records).drop_duplicates(
        ["problem", "method"], keep="last"
    )
    count = everything["method"].nunique()
    for problem, frame in everything.groupby("problem"):
        if len(frame) < count:  # some method has not been run yet
            continue
        done = frame[frame["losses"].notna()] if "losses" in frame else frame[:0]
        if done.empty:
            continue
        best = min(losses[-1] for losses in done["losses"])
        for record in frame.to_dict("records"):
            steps = np.inf
            if isinstance(record.get("losses"), list):
                losses, places = np.array(record["losses"]), record["places"]
                reached = losses <= best + tolerance * (losses[0] - best)
                steps = places[np.argmax(reached)] if reached.any() else np.inf
            seconds = steps * record.get("seconds_a_step", np.inf) if steps else 0.0
            rows.append((problem, record["method"], steps, seconds))
    columns = ["problem", "method", "steps", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def _rows(costs: dict[float, pd.DataFrame], done: list[Record]) -> Iterator[Record]:
    for method in dict.fromkeys(record["method"] for record in done):
        row = {"method": method}
        for tolerance, frame in costs.items():
            mine = frame[frame["method"] == method]
            solved = np.isfinite(mine["steps"])
            row[f"solved to {tolerance:g}"] = f"{solved.sum()} of {len(mine)}"
            milliseconds = 1e3 * mine["seconds"][solved].median()
            row[f"median ms to {tolerance:g}"] = f"{milliseconds:.2g}"
        compiling = [r["compile_seconds"] for r in done if r["method"] == method]
        yield row | {"median compile, s": f"{np.median(compiling):.1f}"}


def _lost(costs: pd.DataFrame, method: str) -> list[str]:
    table = costs.pivot(index="problem", columns="method", values="steps")
    lost = table[np.isinf(table[method])]
    return [
        f"- {problem}: {', '.join(row.index[np.isfinite(row)])}"
        for problem, row in lost.iterrows()
    ]


def _profiles(costs: dict[float, pd.DataFrame]) -> plt.Figure:
    figure, panels = plt.subplots(1, len(costs), figsize=(11, 4), sharey=True)
    for panel, (tolerance, frame) in zip(panels, costs.items()):
        table = frame.pivot(index="problem", columns="method", values="seconds")
        floor = table[table > 0].min(axis=None)
        ratios = table.clip(lower=floor).div(
            table.clip(lower=floor).min(axis=1), axis=0
        )
        for method, (color, line) in zip(dict.fromkeys(frame["method"]), STYLES):
            ordered = np.sort(ratios[method])
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            kwargs = {"color": color, "ls": line, "label": method}
            panel.step(ordered, share, where="post", **kwargs)
        panel.set(xscale="log", xlim=(1, 1000), ylim=(0, 1))
        panel.set(
            title=f"τ = {tolerance:g}", xlabel="time ÷ that of the fastest method"
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of the problems that are solved")
    panels[-1].legend(fontsize="small", loc="lower right")
    return figure
