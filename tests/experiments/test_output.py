"""Checkpoints come back to the last bit."""

import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import methods
from experiments.data import Dataset, Split
from experiments.models import MODELS
from experiments.output import Output, restore
from experiments.training import Trainer

DATA = Split(np.zeros((1, 4, 4, 1), np.float32), np.zeros(1, np.int32))


def standing(seed=0, name="fomoh_kd"):
    method = methods.make_method(name, 0.1, 3)
    return Trainer(MODELS["softmax"], method, Dataset(DATA, DATA), 1).begin(seed)


def opened(folder, start):
    return contextlib.closing(Output(folder, start.records))


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
        assert not hasattr(x, "dtype") or x.dtype == y.dtype
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)  # NaN equals NaN here


@pytest.mark.parametrize("name", ["fgd", "fomoh_kd", "fomoh_ap", "fomoh_bp", "adam"])
def test_a_checkpoint_comes_back_with_its_types_keys_and_bits(tmp_path, name):
    fresh, before = standing(0, name), standing(3, name)
    before = before._replace(epoch=4, seconds=1 / 3, nonfinite=2)
    assert restore(tmp_path, fresh) is fresh
    with opened(tmp_path, fresh) as output:
        output.write({"step": 1})
        output.save(5, before)
    assert_same(restore(tmp_path, fresh), before._replace(records=[{"step": 1}]))


def test_the_last_three_are_kept_and_what_a_kill_leaves_is_cleared_away(tmp_path):
    folder, fresh = tmp_path / "checkpoints", standing()
    with opened(tmp_path, fresh) as output:
        for epoch in range(1, 5):
            output.save(epoch, fresh._replace(epoch=epoch))
    shutil.copytree(folder / "4", folder / "5.orbax-checkpoint-tmp")
    last = restore(tmp_path, fresh)
    assert last.epoch == 4
    with opened(tmp_path, last) as output:
        output.save(5, fresh._replace(epoch=5))
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "5"]
