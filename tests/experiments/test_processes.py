"""Several processes do what one does."""

import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import data, digits, methods, parallel
from experiments.data import Dataset
from experiments.models import MODELS
from experiments.training import Trainer
from tests.experiments.test_resume import ROOT, flags, folder_of, results
from tests.experiments.test_training import blobs
from tests.reference import slow

# 4 steps an epoch, 6 epochs; a checkpoint after each.
OPTIONS = {
    "model": "softmax",
    "method": "fomoh_kd",
    "k": 2,
    "data": "synthetic",
    "batch_size": 16,
    "steps": 24,
    "evaluate_every": 4,
    "checkpoint_every": 4,
}
TOGETHER = {"coordinator": "localhost:1", "process_id": 0}
PROGRAM = """
import functools
from experiments import data, digits
from tests.reference import slow
data.make_synthetic = functools.partial(data.make_synthetic, (64, 20))
digits.main(digits.parse())
"""


def two(out, **others):
    """The experiment as two processes: how each ended, and what it said.

    ``others`` are options of the second alone.
    """
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]  # free a moment ago
    shared = OPTIONS | {"out": out, "processes": 2, "coordinator": f"localhost:{port}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, flags(**options, process_id=i))],
            env=os.environ | {"JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, options in enumerate((shared, shared | others))
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    return [process.returncode for process in started], said


def assert_close_results(folder, other):
    records, params = results(folder)
    expected, expected_params = results(other)
    assert [r["step"] for r in records] == [4, 8, 12, 16, 20, 24]
    for record, like in zip(records, expected, strict=True):
        assert record == pytest.approx(like, rel=1e-5, abs=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        params,
        expected_params,
    )


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_which_can_go_on_with_them(
    tmp_path, monkeypatch
):
    tiny = data.make_synthetic((64, 20))
    monkeypatch.setattr(data, "make_synthetic", lambda: tiny)
    statuses, said = two(tmp_path / "two")
    assert statuses == [0, 0], said
    digits.main(digits.Config(out=tmp_path / "one", **OPTIONS))
    together = folder_of(tmp_path / "two")
    assert_close_results(together, folder_of(tmp_path / "one"))
    for name in ("5", "6"):  # as if both had been killed in the fifth epoch
        shutil.rmtree(together / "checkpoints" / name)
    digits.main(digits.parse(["--resume", str(together), "--processes", "1"]))
    assert_close_results(together, folder_of(tmp_path / "one"))


@pytest.mark.slow
def test_processes_with_other_options_are_refused(tmp_path):
    statuses, said = two(tmp_path, k=3)
    assert 0 not in statuses
    assert any("Start all processes with the same options" in text for text in said)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"processes": 0}, "--processes must be at least 1"),
        ({"processes": 3, **TOGETHER}, "--batch-size must be a multiple of 3"),
        ({"processes": 32, **TOGETHER}, "--batch-size must be a multiple of 32"),
        ({"processes": 2}, "--processes 2 needs --coordinator HOST:PORT"),
        ({"processes": 2, "process_id": 1}, "--processes 2 needs --coordinator"),
        ({"processes": 2, **TOGETHER, "process_id": 2}, "--process-id from 0 to 1"),
    ],
)
def test_options_that_make_no_sense_are_explained(tmp_path, options, said):
    with pytest.raises(SystemExit, match=said):
        digits.main(digits.Config(out=tmp_path, **OPTIONS | options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sgd", slow("fomoh_kd")])
def test_an_epoch_over_a_mesh_is_the_same_epoch(name):
    method = methods.make_method(name, 0.01, 2)
    ends = []
    for mesh in (None, parallel.make_mesh()):
        data = Dataset(blobs(), blobs())
        trainer = Trainer(MODELS["softmax"], method, data, 16, mesh)
        ends.append(list(trainer.train(2, trainer.begin(0))))
    for alone, over_mesh in zip(*ends):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            (alone.params, alone.losses),
            (over_mesh.params, over_mesh.losses),
        )
