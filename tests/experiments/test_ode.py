"""The ODE study, small, beside scipy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from experiments import ode
from experiments.minimisation import minimise

CONFIG = ode.Config(steps=10, seeds=2, spread=0.05, duration=6.0, observations=6)
TRUTH = np.log(ode.TRUTH)


def scipy_trajectory(log_parameters, times):
    alpha, beta, delta, gamma = np.exp(log_parameters)

    def field(_, y):
        x, z = y
        return [alpha * x - beta * x * z, delta * x * z - gamma * z]

    solution = solve_ivp(
        field, (0, times[-1]), ode.POPULATIONS, t_eval=times, rtol=1e-9, atol=1e-9
    )
    return np.log(solution.y.T)


def test_the_solution_is_scipy_s():
    times = np.array([0.01, 3.0, 20.0])
    ours = ode.trajectory(jnp.asarray(TRUTH), jnp.asarray(times))
    np.testing.assert_allclose(ours, scipy_trajectory(TRUTH, times), atol=3e-5)


def test_too_few_steps_give_nan_and_not_a_wrong_solution():
    decay = lambda y: -y
    times = jnp.array([0.001, 50.0])
    states = ode.solve(decay, jnp.ones(1), times, max_steps=3)
    np.testing.assert_array_equal(jnp.isnan(states[:, 0]), [False, True])


@pytest.mark.slow
def test_newton_by_the_full_hyperplane_ends_where_scipy_s_least_squares_does():
    times, data = map(np.asarray, ode.observe(CONFIG))
    residuals = lambda x: (scipy_trajectory(x, times) - data).ravel()
    theirs = least_squares(residuals, TRUTH, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    loss = ode.make_loss(CONFIG)
    newton = ode.make_contenders()["FoMoH-4D, Newton"]
    ours = minimise(loss, newton, TRUTH[None] + 0.03, 8)
    np.testing.assert_allclose(ours.points[0], theirs.x, atol=1e-4)
    np.testing.assert_allclose(
        ours.losses[0, -1], np.mean(theirs.fun**2) / 2, rtol=1e-5
    )


def test_reverse_mode_raises_and_the_study_says_so():
    assert "while_loop" in ode.reverse_mode_error(ode.make_loss(CONFIG), TRUTH)
    with pytest.raises(AssertionError, match="has differentiated"):
        ode.reverse_mode_error(lambda x: jnp.sum(x**2), TRUTH)


@pytest.mark.slow
def test_it_writes_a_figure_and_a_table_with_every_start(tmp_path, monkeypatch, capsys):
    every = ode.make_contenders()
    few = {name: every[name] for name in ("FGD", "FoMoH-4D, Newton")}
    monkeypatch.setattr(ode, "make_contenders", lambda: few)
    ode.main(dataclasses.replace(CONFIG, out=tmp_path))
    assert (tmp_path / "ode" / "fit.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "ode" / "table.md").read_text()
    assert text.count("| FGD") == text.count("| FoMoH-4D, Newton") == 3
    assert "Reverse-mode differentiation does not work" in capsys.readouterr().out
