"""The main job, small."""

import json

import numpy as np
import pytest

from experiments import data, digits

pytestmark = pytest.mark.optimised


def run(tmp_path, capsys, **options):
    options = {"model": "softmax", "method": "fomoh_kd"} | options
    digits.main(digits.Config(out=tmp_path, **options))
    (folder,) = tmp_path.iterdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return folder, [json.loads(line) for line in lines], capsys.readouterr()


def test_it_writes_metrics_a_figure_and_a_table(tmp_path, capsys):
    folder, records, printed = run(
        tmp_path,
        capsys,
        k=4,
        learning_rate=0.3,
        steps=60,
        evaluate_every=30,
        seeds=2,
        milestone=45,
    )
    assert {r["seed"] for r in records} == {0, 1}
    assert [r["step"] for r in records if r["seed"] == 0] == [3, 30, 60]
    assert records[-1]["train_loss"] < records[0]["batch_loss"]
    assert records[-1]["batch_loss"] < records[0]["batch_loss"]
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((folder / "config.json").read_text())["k"] == 4
    assert "fomoh_kd4" in printed.out and "±" in printed.out
    assert "accuracy" in printed.err  # the progress bar


@pytest.mark.slow
def test_the_cnn_takes_a_step(tmp_path, capsys):
    _, records, _ = run(
        tmp_path, capsys, model="cnn", method="fomoh", batch_size=1000, steps=1
    )
    assert records[-1]["step"] == 4 and records[-1]["train_loss"] < 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "fomoh"])
def test_vgg_takes_a_step_on_images_of_the_shape_of_cifar(
    tmp_path, capsys, monkeypatch, method
):
    tiny = data.make_synthetic((8, 4))
    monkeypatch.setattr(data, "make_synthetic", lambda: tiny)
    _, records, _ = run(
        tmp_path,
        capsys,
        model="vgg",
        data="synthetic",
        method=method,
        batch_size=8,
        steps=2,
    )
    assert records[-1]["step"] == 2 and np.isfinite(records[-1]["train_loss"])


def test_what_cannot_be_had_is_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.load_cifar10, "__defaults__", (("file:///nowhere/",),))
    with pytest.raises(SystemExit, match=r"Or use --data synthetic"):
        run(tmp_path, capsys, data="cifar10", data_dir=tmp_path)


def test_bad_options_are_explained(tmp_path, capsys):
    with pytest.raises(SystemExit, match="--batch-size must be at most 4000"):
        run(tmp_path, capsys, batch_size=5000)
    with pytest.raises(SystemExit, match="--k must be at least 1; got 0"):
        run(tmp_path, capsys, k=0)
    with pytest.raises(SystemExit, match="--milestone needs --learning-rate"):
        run(tmp_path, capsys, milestone=1)
    with pytest.raises(SystemExit, match="--learning-rate is not for fomoh_ap"):
        run(tmp_path, capsys, method="fomoh_ap", learning_rate=0.1)


@pytest.mark.slow
def test_fomoh_kd_has_as_much_time_as_fomoh_ap(tmp_path, capsys):
    _, records, printed = run(tmp_path, capsys, method="fomoh_ap", k=2, steps=30)
    assert records[-1]["train_loss"] < records[0]["batch_loss"]
    rows = [line for line in printed.out.splitlines() if line.startswith("| fomoh")]
    assert [row.split()[1] for row in rows] == ["fomoh_ap2", "fomoh_kd2"]
    ours, theirs = (float(row.split("|")[-2]) for row in rows)
    assert theirs >= round(ours, 1)


@pytest.mark.slow
def test_the_defaults_reach_85_percent(tmp_path, capsys):
    _, records, _ = run(tmp_path, capsys)
    assert records[-1]["test_accuracy"] >= 0.85
