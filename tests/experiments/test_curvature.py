"""The study of estimates, small."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import curvature


@pytest.mark.slow
def test_it_writes_a_figure_and_a_table_with_every_estimate(
    tmp_path, monkeypatch, capsys
):
    make_estimators = curvature.make_estimators
    names = "Hutchinson's trace", "sampled Hessian"
    few = lambda problem: {name: make_estimators(problem)[name] for name in names}
    monkeypatch.setattr(curvature, "make_estimators", few)
    config = curvature.Config(
        inputs=1, hidden=1, samples=(16,), repetitions=50, out=tmp_path
    )
    curvature.main(config)
    folder = tmp_path / "curvature"
    assert (folder / "variance.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    for name in (*names, "three top eigenvalues", "conjugate gradients"):
        assert f"| {name} " in text


def test_the_variances_are_those_of_samples():
    h = jnp.array([[2.0, 0.5], [0.5, -1.0]])
    v = np.random.default_rng(0).standard_normal((400_000, 2))
    products = v[:, :, None] * v[:, None] - np.eye(2)
    samples = np.einsum("si,ij,sj->s", v, h, v)[:, None, None] * products / 2
    np.testing.assert_allclose(samples.var(0), curvature.variances(h), rtol=0.05)


def test_bad_options_are_explained(tmp_path):
    with pytest.raises(SystemExit, match="--samples must be at least 2"):
        curvature.main(curvature.Config(samples=(1,), out=tmp_path))
