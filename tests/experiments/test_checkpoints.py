"""Checkpoints come back to the last bit, or not at all."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoints, methods
from experiments.checkpoints import Checkpoint, Checkpoints
from experiments.data import Split
from experiments.models import MODELS
from experiments.training import begin

DATA = Split(np.zeros((1, 4, 4, 1), np.float32), np.zeros(1, np.int32))


def standing(seed=0, name="fomoh_kd"):
    method = methods.make_method(name, 0.1, 3)
    return begin(MODELS["softmax"], method, DATA, seed)


def checkpoint(epoch):
    fresh = standing(seed=epoch)
    return Checkpoint(0, fresh._replace(epoch=epoch), 0.1 * epoch, epoch, 7)


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
        assert not hasattr(x, "dtype") or x.dtype == y.dtype
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)  # NaN equals NaN here


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints 1 to 4, of which the last three are there."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as store:
        for epoch in range(1, 5):
            store.save(epoch, checkpoint(epoch))
    return folder


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_the_last_three_are_kept(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["2", "3", "4"]


@pytest.mark.parametrize("name", ["fgd", "fomoh_kd", "fomoh_bp", "adam"])
def test_a_checkpoint_comes_back_with_its_types_keys_and_bits(tmp_path, name):
    before = standing(3, name)
    with Checkpoints(tmp_path / "c") as store:
        store.save(5, Checkpoint(1, before, 1 / 3, 2, 99))
    with Checkpoints(tmp_path / "c") as store:
        after = store.restore(standing(0, name))
    assert_same(after, Checkpoint(1, before, 1 / 3, 2, 99))


def test_there_is_none_in_a_new_folder(tmp_path):
    with Checkpoints(tmp_path / "c") as store:
        assert store.restore(standing()) is None


def damages(path):
    content = path.read_bytes()
    yield "empty", lambda: path.write_bytes(b"")
    yield "half", lambda: path.write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    yield "flipped", lambda: path.write_bytes(flipped)
    yield "absent", path.unlink


def test_any_damage_to_the_newest_is_noticed_or_harmless(saved, tmp_path, capsys):
    """Every file of it: empty, cut in half, with a flipped bit, and absent."""
    noticed = set()
    for file in files(saved / "4"):
        for kind, _ in damages(file):
            folder = tmp_path / "run" / "checkpoints"
            shutil.copytree(saved, folder)
            damaged = folder / file.relative_to(saved)
            dict(damages(damaged))[kind]()
            with Checkpoints(folder) as store:
                restored = store.restore(standing())
            printed = capsys.readouterr().err
            if restored.standing.epoch == 4:
                assert_same(restored, checkpoint(4))
                assert not printed
            else:
                assert_same(restored, checkpoint(3))
                assert "Checkpoint 4 is damaged (" in printed
                assert (tmp_path / "run" / "damaged" / "4").is_dir()
                noticed.add((file.parent.name, kind))
            shutil.rmtree(tmp_path / "run")
    assert {("numbers", "half"), ("d", "half"), ("d", "absent")} <= noticed


def test_when_all_are_damaged_it_is_as_if_there_were_none(saved, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for file in files(folder):
        file.write_bytes(b"")
    with Checkpoints(folder) as store:
        assert store.restore(standing()) is None
        store.save(4, checkpoint(4))  # their numbers are free again
        assert store.restore(standing()).standing.epoch == 4
    printed = capsys.readouterr().err
    assert all(f"Checkpoint {number} is damaged" in printed for number in (2, 3, 4))


def test_what_a_kill_in_the_middle_leaves_is_cleared_away(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.copytree(saved / "4", folder / "5.orbax-checkpoint-tmp")
    with Checkpoints(folder) as store:
        assert store.restore(standing()).standing.epoch == 4
        store.save(5, checkpoint(5))
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "5"]


def test_a_checkpoint_that_will_not_do_is_passed_over(saved, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)

    def check(checkpoint):
        if checkpoint.standing.epoch > 2:
            raise ValueError("too late")

    with Checkpoints(folder) as store:
        assert store.restore(standing(), check).standing.epoch == 2
    printed = capsys.readouterr().err
    assert "Checkpoint 4 is damaged (ValueError: too late)" in printed
    assert "Checkpoint 3 is damaged (ValueError: too late)" in printed


def test_parameters_are_saved_over_what_was_there(tmp_path):
    for seed in (0, 1):
        params = standing(seed).params
        checkpoints.save_params(tmp_path / "params", params)
        assert_same(checkpoints.load_params(tmp_path / "params"), params)
