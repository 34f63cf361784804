"""The Rosenbrock study, small."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

from experiments import rosenbrock
from experiments.minimisation import minimise
from tests.reference import normal

CONTENDERS = rosenbrock.make_contenders(3, rosenbrock.Config())


def test_the_full_hyperplane_follows_newton_to_the_minimum_that_scipy_finds():
    # Not too far out: where the Hessian is all but singular, rounding decides where
    # Newton's method itself goes.
    starts = 1 + 0.2 * normal(4, 3)
    newton, plane = (
        minimise(rosenbrock.rosenbrock, CONTENDERS[name], starts, 16)
        for name in ("Newton", "FoMoH-3D")
    )
    np.testing.assert_allclose(plane.losses, newton.losses, rtol=1e-6, atol=1e-20)
    theirs = minimize(rosen, starts[0], jac=rosen_der, options={"gtol": 1e-10})
    np.testing.assert_allclose(plane.points, [theirs.x] * 4, rtol=1e-8)


@pytest.mark.slow
def test_the_loss_is_scipy_s():
    x = np.asarray(normal(6))
    np.testing.assert_allclose(rosenbrock.rosenbrock(x), rosen(x), rtol=1e-12)
    gradient = jax.grad(rosenbrock.rosenbrock)(x)
    np.testing.assert_allclose(gradient, rosen_der(x), rtol=1e-12)


@pytest.mark.slow
def test_it_writes_a_figure_and_a_table_with_every_method(tmp_path, capsys):
    config = rosenbrock.Config(
        (2,), steps=5, seeds=2, many_seeds=3, fgd_rates=(1e-4,), out=tmp_path
    )
    rosenbrock.main(config)
    folder = tmp_path / "rosenbrock"
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    for name in ("FGD", "FoMoH ", "FoMoH-2D", "K = D, trust", "Newton", "Adam"):
        assert name in text


@pytest.mark.slow
def test_in_a_trust_region_every_start_ends_at_a_minimum():
    config = rosenbrock.Config(dimensions=(10,), steps=100)
    text = rosenbrock.reliability(config)
    rows = [line.split("|")[2:] for line in text.splitlines() if "| 100, " in line]
    (normal_starts, uniform_starts) = ([int(x) for x in row[:3]] for row in rows)
    assert normal_starts[2] == 0 and normal_starts[0] >= 70
    assert uniform_starts == [100, 0, 0]


def test_a_minimum_is_where_newton_s_method_would_stay_and_no_saddle():
    minimum = minimize(rosen, [-1.0] + 9 * [1.0], jac=rosen_der, tol=1e-12).x
    assert rosenbrock.is_minimum(minimum) and rosen(minimum) > 3.9
    assert rosenbrock.is_minimum(np.ones(10))
    assert not rosenbrock.is_minimum(np.zeros(10))


@pytest.mark.parametrize("dimensions", [(), (1,), (5, 1)])
def test_bad_options_are_explained(tmp_path, dimensions):
    with pytest.raises(SystemExit, match="--dimensions must be at least 2"):
        rosenbrock.main(rosenbrock.Config(dimensions=dimensions, out=tmp_path))
