"""The study of Newton's method with sparse Hessians, small."""

import numpy as np
import pytest

from experiments import sparse_newton
from experiments.sparse_newton import METHODS, Config

SMALL = Config(cells=8, steps=8, iterations=2000, seconds=100.0)


def test_every_method_comes_to_the_same_minimum_and_newton_in_few_steps(
    tmp_path, monkeypatch, capsys
):
    results = sparse_newton.run_all(SMALL)
    for runs in results.values():
        sparse, dense, lbfgs = (runs[name] for name in METHODS)
        assert sparse.slopes[-1] <= SMALL.tolerance * sparse.slopes[0]
        np.testing.assert_allclose(sparse.losses, dense.losses, rtol=1e-6)
        np.testing.assert_allclose(sparse.x, dense.x, atol=1e-6)
        np.testing.assert_allclose(sparse.x, lbfgs.x, atol=1e-3)
        assert len(sparse.losses) < 30 < len(lbfgs.losses)
        assert np.all(np.diff(sparse.losses) < 1e-12)
        assert sparse.method.temporary_bytes < dense.method.temporary_bytes
        assert sparse.method.stored < dense.method.stored
    monkeypatch.setattr(sparse_newton, "run_all", lambda config: results)
    sparse_newton.main(Config(out=tmp_path))
    folder = tmp_path / "sparse_newton"
    assert (folder / "convergence.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert all(text.count(f" {name} |") == 2 for name in METHODS)


@pytest.mark.parametrize("option", ["cells", "steps", "iterations"])
def test_bad_options_are_explained(tmp_path, option):
    with pytest.raises(SystemExit, match=f"--{option} must be at least"):
        sparse_newton.main(Config(**{option: 0}, out=tmp_path))
