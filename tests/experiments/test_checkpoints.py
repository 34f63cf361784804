"""Checkpoints come back to the last bit."""

import contextlib
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


@contextlib.contextmanager
def opened(folder):
    folder.mkdir(exist_ok=True)
    with contextlib.closing(Checkpoints(folder)) as store:
        yield store


@pytest.mark.parametrize("name", ["fgd", "fomoh_kd", "fomoh_bp", "adam"])
def test_a_checkpoint_comes_back_with_its_types_keys_and_bits(tmp_path, name):
    before = standing(3, name)
    with opened(tmp_path / "c") as store:
        assert store.restore(standing(0, name)) is None
        store.save(5, Checkpoint(1, before, 1 / 3, 2, 99))
    with opened(tmp_path / "c") as store:
        after = store.restore(standing(0, name))
    assert_same(after, Checkpoint(1, before, 1 / 3, 2, 99))


def test_the_last_three_are_kept_and_what_a_kill_leaves_is_cleared_away(tmp_path):
    folder = tmp_path / "checkpoints"
    with opened(folder) as store:
        for epoch in range(1, 5):
            store.save(epoch, checkpoint(epoch))
    shutil.copytree(folder / "4", folder / "5.orbax-checkpoint-tmp")
    with opened(folder) as store:
        assert store.restore(standing()).standing.epoch == 4
        store.save(5, checkpoint(5))
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "5"]


def test_parameters_are_saved_over_what_was_there(tmp_path):
    for seed in (0, 1):
        params = standing(seed).params
        checkpoints.save_params(tmp_path / "params", params)
        assert_same(checkpoints.load_params(tmp_path / "params"), params)
