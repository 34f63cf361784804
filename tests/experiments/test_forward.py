"""The study of training by perturbed activations."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import fomoh_jax
from experiments import methods
from experiments.data import Dataset
from experiments.models import MODELS
from experiments.records import append
from experiments.studies import __main__ as studies
from experiments.studies import cosines, forward, forward_report, runner
from experiments.studies.runs import load_all
from experiments.training import make_losses
from tests.experiments.test_studies import a_result
from tests.experiments.test_training import blobs
from tests.reference import slow

IMAGES = jnp.zeros((1, 8, 8, 1))


def record(run, train_loss=0.1, accuracy=0.9, diverged=False):
    result = a_result(run, train_loss, diverged=diverged)
    return result | {"test_accuracy": accuracy, "run": dataclasses.asdict(run)}


def test_the_rate_is_that_of_the_best_accuracy_on_digits_held_out(tmp_path):
    config, file = forward.Config(problems=("mlp",)), tmp_path / "runs.jsonl"
    grid = forward.grid(config)
    assert {run.data for run in grid} == {"validation"}
    best = {"ap_adam": 1e-3, "ap_sgd": 0.3, "adam": 3e-4, "sgd": 0.03, "fgd": 3e-4}
    for run in grid:
        rate, largest = run.learning_rate, max(forward.RATES[run.method])
        at_best = rate == best[run.method]
        diverged = not at_best and rate == largest  # whatever its accuracy
        append(
            file,
            record(
                run, accuracy=0.9 if at_best or diverged else 0.8, diverged=diverged
            ),
        )
    chosen = forward.chosen(config, load_all(file))
    assert {run.method: run.learning_rate for run in chosen} == best | dict.fromkeys(
        ("fomoh_ap", "tail", "fomoh_kd")
    )
    assert len(chosen) == 3 * 8 and {run.data for run in chosen} == {"small"}


def test_the_report_has_a_row_for_every_contender(tmp_path):
    config, file = forward.Config(problems=("mlp", "deep")), tmp_path / "runs.jsonl"
    for run in forward.grid(config):
        append(file, record(run))
    for run in forward.chosen(config, load_all(file)):
        append(file, record(run, 0.1 + 0.01 * run.seed, accuracy=0.91))
    lines = [
        {"step": step, "blocks": blocks, "probes": 1, "cosine": 0.5 / blocks}
        for step in (0, 50)
        for blocks in (2, 5)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "cosines.jsonl").write_text(text)
    forward_report.main(tmp_path)
    report = (tmp_path / "README.md").read_text()
    rows = [
        line.split("|")[1].strip()
        for line in report.splitlines()
        if line.startswith("|")
    ]
    for problem in config.problems:
        assert all(name in rows for name in forward.PROBLEMS[problem].contenders)
    assert "784-100-10, batch 1,024, 1,000 steps" in report
    assert "0.110 ± 0.010" in report  # of three seeds
    assert "0.25" in report
    for name in ("mlp-1000", "deep-600", "cosines"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_tail_only_moves_the_last_block_as_if_there_were_no_other():
    model = MODELS["mlp"]
    _, loss_of_one = make_losses(model)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)
    images, labels = blobs(16)
    images = images.reshape(16, -1)[:, :64].reshape(16, 8, 8, 1)
    frozen = methods.estimated(loss_of_one, params, (images[0], labels[0]), 2)
    layers = {name: set(layer.values()) for name, layer in frozen["params"].items()}
    assert layers == {"Dense_0": {True}, "Dense_1": {False}}
    tx = methods.with_frozen(fomoh_jax.fomoh_ap(1), frozen)
    given = {"value_fn": loss_of_one, "batch": (images, labels)}
    step, state = jax.jit(lambda s: tx.update(None, s, params, **given))(
        tx.init(params)
    )
    assert not any(np.any(x) for x in step["params"]["Dense_0"].values())
    gradient = jax.grad(make_losses(model)[0])(params, images, labels)
    kernel, expected = (x["params"]["Dense_1"]["kernel"] for x in (step, gradient))
    assert np.all(kernel * expected <= 0) and np.any(kernel)
    assert np.isfinite(state[0].value)


@pytest.mark.slow
def test_more_probes_and_fewer_blocks_are_closer_to_the_gradient(tmp_path):
    file = tmp_path / "cosines.jsonl"
    cosines.run_all(file, 0)
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    of = {(x["blocks"], x["probes"]): x["cosine"] for x in kept}
    assert list(of) == cosines.SETTINGS
    assert 0 < of[5, 1] < of[5, 4] < of[5, 16] < 1 and of[5, 1] < of[2, 1]


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    command = "forward --problems mlp --steps 2 --seeds 1 --no-cosines"
    for done in ("15 runs done", "0 runs done"):
        studies.main([*command.split(), "--results", str(tmp_path)])
        assert done in capsys.readouterr().out
    assert "tail only" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("method", ["fomoh_ap", slow("tail"), slow("ap_adam")])
def test_a_run_trains(tmp_path, method):
    run = forward.chosen(forward.Config(problems=("mlp",), seeds=1), _rates())
    run = next(r for r in run if r.method == method)
    run = dataclasses.replace(run, batch_size=16, steps=24)
    trainer = runner.make_trainer(run, Dataset(blobs(64), blobs(20)))
    result = runner.execute(run, trainer)
    assert not result["diverged"] and result["train_loss"] < result["first_loss"]


def _rates():
    kept = []
    for run in forward.grid(forward.Config(problems=("mlp",))):
        kept.append(record(run) | dataclasses.asdict(run) | {"run": run})
    return pd.DataFrame(kept)
