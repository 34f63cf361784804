"""The study of elliptic equations, small, beside closed forms and ``jax.hessian``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import ways
from experiments.pinn import __main__ as pinn
from experiments.pinn import comparison, problem, training
from experiments.pinn.problem import EQUATIONS
from experiments.pinn.training import Config

CONFIG = Config(
    hidden=(8,),
    points=64,
    adam_steps=40,
    lbfgs_steps=0,
    every=40,
    seeds=1,
    dimensions=(3,),
    repeats=1,
)
X = problem.points(jax.random.key(0), 200, 3)


def test_points_are_uniform_in_the_ball():
    radii = np.linalg.norm(X, axis=1)
    assert radii.max() < 1
    # The volume within a radius is its cube.
    np.testing.assert_allclose(np.mean(radii**3), 1 / 2, atol=0.1)


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_solution_solves_its_equation_by_differences(name):
    equation, x, h = EQUATIONS[name], X[0], 1e-4
    weights = equation.weights(x) if name == "anisotropic" else np.eye(3)
    u, e = problem.solution, h * np.eye(3)
    hessian = [
        [(u(x + a + b) - u(x + a - b) - u(x - a + b) + u(x - a - b)) / 4 for a in e]
        for b in e
    ]
    expected = np.sum(weights * np.array(hessian)) / h**2
    np.testing.assert_allclose(problem.source(equation, x), expected, rtol=1e-5)


def test_solution_and_network_are_zero_on_the_boundary():
    boundary = X[0] / jnp.linalg.norm(X[0])
    params = problem.initialise(jax.random.key(1), (3, 8, 1))
    for value in (problem.solution(boundary), problem.network(params, boundary)):
        assert abs(value) < 1e-14


def test_weights_of_the_anisotropic_equation_are_positive_definite():
    least = np.linalg.eigvalsh(jax.vmap(problem.radial)(X))[:, 0]
    np.testing.assert_allclose(least, 0.1)


def _installed():
    return [n for n in ways.TRACES if n != "folx" or ways.folx is not None]


@pytest.mark.parametrize("way", _installed())
def test_every_way_to_the_operator_is_the_trace_of_the_hessian(way):
    c = problem.radial(X[0])
    trace, u = ways.TRACES[way], problem.solution
    weighted = jax.jit(lambda x: trace(u, x, c))(X[0])
    expected = jax.jit(lambda x: jnp.sum(c * jax.hessian(u)(x)))(X[0])
    np.testing.assert_allclose(weighted, expected, rtol=1e-11)
    if way != ways.FACTORED:  # it is for weights alone
        plain = jax.jit(lambda x: trace(u, x, None))(X[0])
        expected = problem.source(EQUATIONS["poisson"], X[0])
        np.testing.assert_allclose(plain, expected, rtol=1e-11)


@pytest.fixture(scope="module")
def runs():
    config = dataclasses.replace(CONFIG, equations=("poisson",), adam_steps=0)
    config = dataclasses.replace(config, lbfgs_steps=80)
    return training.train(config)


@pytest.mark.slow
def test_a_few_steps_make_residual_and_error_smaller(runs):
    (run,) = runs["poisson"]
    np.testing.assert_array_equal(run.steps, [0, 40, 80])
    assert run.residuals[-1] < 0.5 * run.residuals[0]
    assert run.errors[-1] < 0.5 * run.errors[0]
    x = problem.points(jax.random.key(5), 500, 2)
    error = training.relative_error(run.params, x)
    np.testing.assert_allclose(error, run.errors[-1], rtol=0.3)


@pytest.mark.slow
def test_it_writes_a_figure_and_tables_with_every_way(
    runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pinn, "train", lambda config: runs)
    monkeypatch.setattr(comparison, "QUANTITIES", {"residual loss": lambda loss: loss})
    pinn.main(dataclasses.replace(CONFIG, equations=("poisson",), out=tmp_path))
    assert (tmp_path / "pinn" / "pinn.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "pinn" / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert text.count("| Poisson, residual loss") == 2
    assert all(f" {way} " in text for way in ways.TRACES)
    if ways.folx is not None:
        assert " error |" not in text.split("Times on")[1]


@pytest.mark.slow
def test_a_rival_that_is_absent_or_raises_is_named(tmp_path, monkeypatch, capsys):
    def refuses(fun, x, weights):
        raise NotImplementedError("no rule for tanh")

    few = {name: ways.TRACES[name] for name in ("fomoh_jax", "folx")}
    monkeypatch.setattr(ways, "folx", None)
    monkeypatch.setattr(comparison, "QUANTITIES", {"its gradient": jax.grad})
    monkeypatch.setattr(comparison, "TRACES", few | {"jet": refuses})
    config = dataclasses.replace(CONFIG, equations=("anisotropic",), seeds=0, repeats=0)
    pinn.main(dataclasses.replace(config, out=tmp_path))
    text = capsys.readouterr().out
    assert text.count(" error |") == 2
    assert "- folx on anisotropic, its gradient, D = 3: ImportError: folx" in text
    assert "- jet on anisotropic, its gradient, D = 3: NotImplementedError: no" in text
    assert not (tmp_path / "pinn" / "pinn.png").exists()


def test_bad_options_are_explained():
    for options, message in (
        ({"points": 0}, "--points must be at least 1"),
        ({"seeds": -1}, "--seeds must be at least 0"),
        ({"hidden": ()}, "--hidden must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            pinn.main(dataclasses.replace(CONFIG, **options))
