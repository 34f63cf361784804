"""The memory study, small, beside jax.grad and numpy."""

import jax
import numpy as np
import pytest

from experiments import memory

pytestmark = pytest.mark.optimised

DATA = memory.spirals(64)


def numpy_loss(params, inputs, labels):
    x = inputs @ params["first"]
    for weight in params["hidden"]:
        z = x @ weight
        z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
        x = x + np.tanh(z) / len(params["hidden"]) ** 0.5
    return np.log1p(np.exp(-labels * (x @ params["last"]))).mean()


def test_the_loss_is_what_numpy_computes_layer_by_layer():
    params = memory.initialise(jax.random.key(0), 16, 4)
    expected = numpy_loss(jax.tree.map(np.asarray, params), *DATA)
    np.testing.assert_allclose(memory.make_loss(16)(params, *DATA), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [(16,), (4, 4), (2, 2, 4)])
def test_checkpoints_change_no_gradient(segments):
    params = memory.initialise(jax.random.key(0), 16, 4)
    plain = jax.grad(memory.make_loss(16))(params, *DATA)
    checkpointed = jax.grad(memory.make_loss(16, segments))(params, *DATA)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        plain,
        checkpointed,
    )


@pytest.mark.slow
def test_a_forward_step_is_flat_in_depth_where_backpropagation_is_linear():
    data = memory.spirals(1024)

    def size(name, depth):
        params = memory.initialise(jax.random.key(0), depth, 4)
        compiled = memory.compile_step(*memory.make_steps(depth)[name], params, data)
        return memory.megabytes(compiled)

    activations = 1024 * 4 * 4 / 1e6  # float32
    assert size("Adam", 64) - size("Adam", 16) > 48 * activations
    assert size("FoMoH", 64) - size("FoMoH", 16) < activations


@pytest.mark.slow
def test_it_writes_a_figure_and_a_table_with_every_method(
    tmp_path, monkeypatch, capsys
):
    make_steps = memory.make_steps
    few = lambda depth: {
        name: make_steps(depth)[name] for name in (memory.FRUGAL, "FoMoH")
    }
    monkeypatch.setattr(memory, "make_steps", few)
    config = memory.Config(
        depths=(4,), width=2, batch=32, budget_mb=0, steps=2, seeds=1, out=tmp_path
    )
    memory.main(config)
    folder = tmp_path / "memory"
    assert (folder / "memory.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    for name in memory.make_steps(4):
        assert f"| {name} " in text
    assert text.count(" no |") == 2


def test_bad_options_are_explained(tmp_path):
    with pytest.raises(SystemExit, match="--depths must be powers of 4"):
        memory.main(memory.Config(depths=(10,), out=tmp_path))
