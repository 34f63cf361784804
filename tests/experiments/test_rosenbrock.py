"""The Rosenbrock study, small."""

import jax
import numpy as np
import pytest

import fomoh_jax
from experiments import rosenbrock
from tests.reference import normal


def test_the_full_hyperplane_follows_newton():
    # Not too far out: where the Hessian is all but singular, rounding decides where
    # Newton's method itself goes.
    starts = 1 + 0.2 * normal(4, 5)
    newton = rosenbrock.minimise(lambda key: rosenbrock.newton(), starts, 16)
    plane = rosenbrock.minimise(
        lambda key: fomoh_jax.fomoh_kd(5, 1.0, key=key), starts, 16
    )
    np.testing.assert_allclose(plane, newton, rtol=1e-6, atol=1e-20)
    assert np.all(plane[:, -1] < 1e-20)


def test_it_writes_a_figure_and_a_table_with_every_method(tmp_path, capsys):
    config = rosenbrock.Config(dimension=3, steps=30, seeds=2, out=tmp_path)
    rosenbrock.main(config)
    assert (tmp_path / "D3" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "D3" / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    for name in ("FGD", "FoMoH ", "FoMoH-2D", "FoMoH-3D", "Newton", "Adam"):
        assert name in text


def test_its_minimum_is_zero_at_ones():
    ones = np.ones(6)
    assert rosenbrock.rosenbrock(ones) == 0
    np.testing.assert_array_equal(jax.grad(rosenbrock.rosenbrock)(ones), 0)


def test_bad_options_are_explained(tmp_path):
    with pytest.raises(SystemExit, match="--dimension must be at least 2"):
        rosenbrock.main(rosenbrock.Config(dimension=1, out=tmp_path))
