"""A run that was stopped, by whatever, ends as one that was not."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import data, digits
from experiments.data import Dataset
from experiments.output import Output, restore
from tests.reference import slow

# Other processes are compared with this one, bit for bit.
pytestmark = pytest.mark.optimised

ROOT = Path(__file__).parents[2]
# 4 steps an epoch, 6 epochs, of two seeds; a checkpoint after each.
OPTIONS = {
    "model": "softmax",
    "method": "fomoh_kd",
    "k": 2,
    "data": "synthetic",
    "batch_size": 16,
    "steps": 24,
    "seeds": 2,
    "evaluate_every": 8,
    "checkpoint_every": 4,
}


def start(tmp_path, *arguments):
    """The job as a process of its own, on 64 images."""
    program = (
        "from experiments import data, digits\n"
        "import functools\n"
        "small = functools.partial(data.make_synthetic, (64, 20))\n"
        "data.make_synthetic = small\n"
        "digits.main(digits.parse())\n"
    )
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def flags(**options):
    for name, value in options.items():
        yield from (f"--{name.replace('_', '-')}", value)


def folder_of(out):
    (folder,) = out.iterdir()
    return folder


def wait_until(process, true):
    """Look again and again; the process must not end before."""
    while not true():
        try:
            _, errors = process.communicate(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(errors)


def lines(out):
    return sum(p.read_bytes().count(b"\n") for p in out.glob("*/metrics.jsonl"))


def results(folder):
    """What a run came to: its metrics without the timings, and all its parameters."""
    records = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    for record in records:
        assert record.pop("seconds") > 0
    params = [load_params(p) for p in sorted((folder / "params").iterdir())]
    return records, params


def load_params(path):
    """As NumPy arrays in dictionaries."""
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(path).item_metadata
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        return checkpointer.restore(path, like)


def assert_same_results(folder, other):
    records, params = results(folder)
    expected, expected_params = results(other)
    assert records == expected
    np.testing.assert_equal(params, expected_params)  # to the last bit
    assert (folder / "curves.png").exists()


@pytest.fixture(scope="module")
def small_set():
    """The synthetic set, small; for runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = data.make_synthetic((64, 20))
        patch.setattr(data, "make_synthetic", lambda: tiny)
        yield tiny


@pytest.fixture(scope="module")
def whole(small_set, tmp_path_factory):
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    digits.main(digits.Config(out=out, **OPTIONS))
    return folder_of(out)


@pytest.fixture
def unfinished(whole, tmp_path):
    """The same run, killed after the fourth epoch of its second seed."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for name in ("11", "12"):
        shutil.rmtree(folder / "checkpoints" / name)
    shutil.rmtree(folder / "params" / "seed1")
    (folder / "curves.png").unlink()
    return folder


def resume(folder):
    digits.main(digits.read_config(folder))


@pytest.mark.slow
def test_it_goes_on_inside_the_right_seed(unfinished, whole):
    with (unfinished / "metrics.jsonl").open("ab") as log:
        log.write(b'{"seed": 1, "epo')  # what was being written
    resume(unfinished)
    assert_same_results(unfinished, whole)
    # It did not start again: what the checkpoint counts on has even its old timings.
    old, new = ((f / "metrics.jsonl").read_text() for f in (whole, unfinished))
    assert new.splitlines()[:7] == old.splitlines()[:7]


def test_it_goes_on_though_it_was_killed_and_then_stopped_before_a_record(
    unfinished, small_set
):
    fresh = digits.make_trainer(digits.read_config(unfinished), small_set).begin(0)
    for number in (11, 12):
        last = restore(unfinished, fresh)
        with contextlib.closing(Output(unfinished, last.records)) as output:
            output.save(number, last)
            assert [r["seed"] for r in output.records] == [0] * 4 + [1] * 3


def test_a_finished_run_is_only_drawn_again(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "curves.png").unlink()
    resume(folder)
    assert (folder / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()
    assert_same_results(folder, whole)
    assert "fomoh_kd2" in capsys.readouterr().out


def test_resume_is_the_only_flag_and_contradictions_are_refused(whole, tmp_path):
    config = digits.parse(["--resume", str(whole)])
    assert config == digits.read_config(whole) and config.k == 2
    assert digits.parse(["--resume", str(whole), "--k", "2"]) == config
    with pytest.raises(SystemExit, match=r"out --k 10 \(the run has 2\), --seeds 1"):
        digits.parse(["--resume", str(whole), "--k", "10", "--seeds", "1"])
    with pytest.raises(
        SystemExit, match=r"config.json cannot be read: .* No such file"
    ):
        digits.parse(["--resume", str(tmp_path)])
    (tmp_path / "config.json").write_text('{"k": ')
    with pytest.raises(SystemExit, match=r"config.json cannot be read"):
        digits.parse(["--resume", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fomoh_kd", "adam"])
def test_non_finite_losses_are_skipped_and_counted(
    small_set, tmp_path, monkeypatch, capsys, method
):
    images = small_set.train.images.copy()
    images[5] = np.nan
    spoilt = Dataset(small_set.train._replace(images=images), small_set.test)
    monkeypatch.setattr(data, "make_synthetic", lambda: spoilt)
    options = OPTIONS | {"method": method, "evaluate_every": 12, "seeds": 1}
    digits.main(digits.Config(out=tmp_path, **options))
    records, params = results(folder_of(tmp_path))
    # Every epoch has every image, so that each has one loss that is not finite.
    assert [(r["epoch"], r["nonfinite_losses"]) for r in records] == [
        (1, 1),
        (3, 2),
        (6, 3),
    ]
    assert all(np.isfinite(r["batch_loss"] + r["test_loss"]) for r in records)
    assert np.all(np.isfinite(params[0]["params"]["Dense_0"]["kernel"]))
    header, _, row = capsys.readouterr().out.splitlines()[:3]
    assert header.split("|")[-2].strip() == "non-finite losses"
    assert row.split("|")[-2].strip() == "6"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, slow(signal.SIGTERM)])
def test_a_signal_stops_it_after_the_epoch_and_says_how_to_go_on(
    whole, tmp_path, number
):
    options = OPTIONS | {"steps": 4_000_000, "seeds": 1}
    process = start(tmp_path, *flags(**options, out="out"))
    wait_until(process, lambda: lines(tmp_path / "out") > 1)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    folder = folder_of(tmp_path / "out")
    assert f"experiments.digits --resume out/{folder.name}" in errors
    assert "Traceback" not in errors
    assert len(os.listdir(folder / "checkpoints")) >= 2
    assert not printed


@pytest.mark.slow
def test_a_second_signal_stops_it_at_once(tmp_path):
    """Here while it waits for something that does not come."""
    program = (
        "import threading\n"
        "from experiments import interruption\n"
        "with interruption.postponed():\n"
        "    print('ready', flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        assert "stopping after this epoch" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == -signal.SIGINT


@pytest.mark.slow
def test_killed_at_random_it_ends_as_if_left_alone(tmp_path):
    options = OPTIONS | {"steps": 240}
    process = start(tmp_path, *flags(**options, out="whole"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    chance = random.Random(0)
    process = start(tmp_path, *flags(**options, out="killed"))
    kills, first = 0, ""
    for target in sorted(chance.sample(range(2, 60), 5)):
        # Until some record is written, and then a little longer: into the middle of an
        # epoch, of a checkpoint, of the next record.
        wait_until(process, lambda: lines(tmp_path / "killed") >= target)
        try:
            process.wait(timeout=chance.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        folder = folder_of(tmp_path / "killed")
        first = first or _first_line(folder)
        process = start(tmp_path, "--resume", folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert kills >= 4
    assert _first_line(folder) == first  # its timing too: it did not start again
    assert_same_results(folder, folder_of(tmp_path / "whole"))


def _first_line(folder):
    return (folder / "metrics.jsonl").read_text().split("\n")[0]
