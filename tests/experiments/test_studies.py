"""Runs that are kept and not repeated, and a report of them alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import Dataset
from experiments.models import MODELS
from experiments.records import append
from experiments.studies import __main__ as studies
from experiments.studies import report, runner, tables, tuning
from experiments.studies.runs import Run, load_all
from tests.experiments.test_training import blobs


def a_run(method="sgd", rate=0.01, seed=0, k=1, schedule="constant", steps=8):
    return Run("softmax", method, k, rate, 16, steps, seed, schedule)


def a_result(run, train_loss=0.5, *, test_loss=0.6, diverged=False):
    """Fabricated, with a curve that goes down."""
    return {
        "run": dataclasses.asdict(run),
        "steps": run.steps,
        "diverged": diverged,
        "first_loss": 2.0,
        "largest_loss": None if diverged else 1.5,
        "train_loss": None if diverged else train_loss,
        "train_accuracy": 0.9,
        "test_loss": test_loss,
        "test_accuracy": 0.8,
        "seconds": 1.0,
        "milliseconds_per_step": 2.0,
        "steps_per_bin": 2,
        "curve": [2.0, None] if diverged else [2.0, 1.0, 0.7, train_loss],
    }


def keep(folder, results):
    for result in results:
        append(folder / "runs.jsonl", result)
    return folder


def one_run(file, run, data):
    """Done, as it is kept."""
    runner.run_all([run], file, data)
    return json.loads(file.read_text(), parse_constant=pytest.fail)  # NaN is not JSON


@pytest.fixture
def data():
    return Dataset(blobs(64), blobs(20))


# ------------------------------------------------------------------------------- runs


def test_a_run_that_is_kept_is_not_repeated(tmp_path, data, monkeypatch):
    runs = [a_run(seed=seed) for seed in (0, 1)]
    file = tmp_path / "results" / "runs.jsonl"
    assert runner.run_all(runs, file, data) == 2
    kept = file.read_bytes()
    assert kept.count(b"\n") == 2
    monkeypatch.setattr(runner, "execute", None)  # to call it would be an error
    assert runner.run_all(runs, file, data) == 0
    assert file.read_bytes() == kept


@pytest.mark.slow
def test_a_stopped_study_is_continued(tmp_path, data, monkeypatch):
    file = tmp_path / "runs.jsonl"
    whole, runs = runner.execute, [a_run(seed=seed) for seed in (0, 1, 2)]

    def stopped(run, *args):
        if run.seed == 1:
            raise KeyboardInterrupt
        return whole(run, *args)

    monkeypatch.setattr(runner, "execute", stopped)
    with pytest.raises(KeyboardInterrupt):
        runner.run_all(runs, file, data)
    assert list(load_all(file).seed) == [0]
    monkeypatch.setattr(runner, "execute", whole)
    assert runner.run_all(runs, file, data) == 2
    assert list(load_all(file).run) == runs


@pytest.mark.slow
def test_seeds_share_a_compilation(tmp_path, data, monkeypatch):
    made, make = [], runner.make_trainer
    record = lambda *args: made.append(make(*args)) or made[-1]
    monkeypatch.setattr(runner, "make_trainer", record)
    seeds = [a_run("fomoh_kd", 0.2, k=2, seed=seed) for seed in (0, 1, 2)]
    runner.run_all(seeds, tmp_path / "runs.jsonl", data)
    (trainer,) = made
    assert trainer.epoch._cache_size() == 1


def test_what_is_kept_is_what_was_run(tmp_path, data):
    run = a_run("fomoh_kd", 0.2, k=2, steps=10)  # rounded up to 3 epochs of 4
    result = one_run(tmp_path / "runs.jsonl", run, data)
    assert list(load_all(tmp_path / "runs.jsonl").run) == [run]
    assert result["steps"] == 12 and not result["diverged"]
    assert len(result["curve"]) == 12 and result["steps_per_bin"] == 1
    assert result["curve"][0] == result["first_loss"] > result["train_loss"]
    assert result["largest_loss"] == max(result["curve"][10:])
    assert 0 <= result["test_accuracy"] <= 1


@pytest.mark.parametrize("rate", [30.0, 1e30])
def test_a_run_that_diverges_is_stopped_and_recorded(tmp_path, data, rate):
    result = one_run(tmp_path / "runs.jsonl", a_run("fgd", rate, steps=200), data)
    assert result["diverged"] and result["steps"] < 40


def test_a_curve_is_thinned_to_means():
    assert runner.thin(np.array([1.0, 3, 5, 7, 100]), 2) == [2, 6, 100]
    assert runner.thin(np.array([1.0, np.nan, 5, np.inf]), 2) == [None, None]


def test_ten_times_the_first_loss_after_the_tenth_step_is_divergence():
    losses = np.ones(30)
    losses[5] = 50
    assert not runner.has_diverged(losses)
    losses[20] = 11
    assert runner.has_diverged(losses)
    losses[20] = np.nan
    assert runner.has_diverged(losses)


def test_a_step_schedule_ends_at_a_tenth(data):
    run = a_run(rate=1.0, schedule="step", steps=6)
    tx = runner.make_trainer(run, data).method.transformation
    params = jnp.zeros(())
    state, updates = tx.init(params), []
    for _ in range(6):
        update, state = tx.update(jnp.ones(()), state, params)
        updates.append(float(update))
    np.testing.assert_allclose(updates, [-1, -1, -1, -1, -0.1, -0.1], rtol=1e-6)


@pytest.mark.slow
def test_the_relu_network_has_79510_parameters():
    params = MODELS["mlp"].init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert sum(x.size for x in jax.tree.leaves(params)) == 79_510


# ----------------------------------------------------------------------------- report


def test_the_learning_rate_is_picked_by_the_train_loss(tmp_path):
    results = [
        a_result(a_run(rate=0.1), 0.4, test_loss=0.9),
        a_result(a_run(rate=0.2), 0.5, test_loss=0.1),
        a_result(a_run(rate=0.4), diverged=True),
        # More seeds of one rate neither help nor harm it.
        a_result(a_run(rate=0.1, seed=1), 0.8),
    ]
    kept = load_all(keep(tmp_path, results) / "runs.jsonl")
    assert tables.best_rate(kept) == 0.1
    assert tables.rate_name(0.1, kept) == "0.1 (edge)"
    assert tables.rate_name(0.2, kept) == "0.2"
    assert tables.best_rate(kept[:0]) is None


def test_the_report_compares_fixed_with_self_tuned(tmp_path):
    losses = {0.5: 0.4, 0.2: 0.3, 0.1: 0.6, None: 0.33}
    results = [
        a_result(a_run("fomoh_kd", rate, seed, k), loss + 0.01 * seed)
        for rate, loss in losses.items()
        for seed in (0, 1)
        for k in (2, 5)
    ]
    lost = a_result(a_run("fomoh_kd", 1.0, 0, 5), diverged=True)
    report.main(keep(tmp_path, [*results, lost]))
    text = (tmp_path / "README.md").read_text()
    (row,) = [x for x in text.splitlines() if x.startswith("| 5 ") and "1.10" in x]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["5", "0.2", "0.305 ± 0.007", "0.335 ± 0.007", "1.10"]
    assert "diverged" in text and "(edge)" not in text.split("## ")[1]
    for name in ("", "-by-k"):
        file = tmp_path / f"tuning-softmax-batch16-steps8{name}.png"
        assert file.read_bytes()[:4] == b"\x89PNG"
        assert file.name in text


def test_the_report_compares_methods_and_batch_sizes(tmp_path):
    results = [
        a_result(a_run(method, rate, k=k, schedule=schedule), loss)
        for method, k in (("sgd", 1), ("fomoh_kd", 10))
        for schedule, factor in (("constant", 1), ("step", 2))
        for rate, loss in ((0.1, 0.7), (0.2 * factor, 0.41), (0.9, 0.9))
    ]
    tuned = a_run("fomoh_kd", None, k=10)
    results += [
        a_result(tuned),
        a_result(dataclasses.replace(tuned, batch_size=32), diverged=True),
    ]
    report.main(keep(tmp_path, results))
    text = (tmp_path / "README.md").read_text()
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in text.splitlines()]
    assert ["SGD", "0.4", "step", "0.410"] in [row[:4] for row in rows]
    assert ["FoMoH-10D, self-tuned", "–", "–", "0.500"] in [row[:4] for row in rows]
    assert ["16", "0.75 (0.500)"] in rows and ["32", "diverged"] in rows
    assert (tmp_path / "paper-softmax-batch16-steps8.png").exists()


def test_a_report_of_nothing_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no runs in"):
        report.main(tmp_path)


# ----------------------------------------------------------------------- command line


@pytest.mark.slow
def test_tuning_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "LEARNING_RATES", (0.5,))
    command = "tuning --problems softmax --ks 2 --rates fixed --seeds 2 --steps 2"
    for done in (2, 0):
        studies.main([*command.split(), "--results", str(tmp_path)])
        assert f"{done} runs done" in capsys.readouterr().out
    assert "softmax, batch 1,024, 2 steps" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_paper_picks_from_a_grid_and_runs_more_seeds_of_the_best(tmp_path):
    options = "--methods SGD --schedules constant --learning-rates 0.1 0.001"
    studies.main(
        [
            *f"paper {options} --self-tuned --steps 2 --seeds 2".split(),
            *("--results", str(tmp_path)),
        ]
    )
    kept = load_all(tmp_path / "runs.jsonl")
    kept = set(zip(kept.learning_rate, kept.seed))
    assert kept == {(0.1, 0), (0.001, 0), (0.1, 1)}


@pytest.mark.parametrize("option", ["--methods FoMoH-7D", "--self-tuned SGD"])
def test_an_unknown_method_is_named(option, capsys):
    with pytest.raises(SystemExit):
        studies.main(["paper", *option.split()])
    assert option.split()[1] in capsys.readouterr().err
