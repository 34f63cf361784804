"""The tutorials run, without a warning, and what they find is right."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import scipy.optimize

EXAMPLES = Path(__file__).parents[1] / "examples"
# They are run as a reader runs them, in float32 where they do not ask for float64.
pytestmark = pytest.mark.optimised


@pytest.fixture
def run(monkeypatch):
    """Runs a tutorial; returns its variables."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    jax.config.update("jax_enable_x64", False)
    yield lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))
    jax.config.update("jax_enable_x64", True)
    pyplot.close("all")


def test_every_tutorial_has_a_test():
    tested = {name.removeprefix("test_") for name in globals()}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.slow
def test_getting_started(run):
    found = run("getting_started")
    assert found["value"] == pytest.approx(9 * np.sin(0.5), rel=1e-6)
    assert found["mixed"] == pytest.approx(6 * np.cos(0.5), rel=1e-6)
    assert found["second_derivative"] == pytest.approx(-2 / 9 * 2 ** (-5 / 3), rel=1e-4)
    x, y = np.moveaxis(np.asarray(found["grid"]), -1, 0)
    laplacians = 2 * np.sin(y) - x**2 * np.sin(y)
    np.testing.assert_allclose(found["laplacians"], laplacians, atol=1e-5)
    np.testing.assert_allclose(found["minimum"], [1, 1], atol=1e-3)
    assert found["cosine_of_one"] < 0.95 < 0.99 < found["cosine_of_mean"]
    assert found["final_loss"] < 0.01 < 0.1 < found["losses"][0]


@pytest.mark.slow
def test_ode_hessian(run):
    diffrax = pytest.importorskip("diffrax", reason="diffrax is not installed")
    found = run("ode_hessian")
    fit, observed = found["fit"], found["observed"]

    def loss(log_rates):  # by the adjoint that JAX can differentiate forwards
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(found["field"]),
            diffrax.Tsit5(),
            t0=0.0,
            t1=found["times"][-1],
            dt0=0.1,
            y0=found["start"],
            args=jnp.exp(log_rates),
            saveat=diffrax.SaveAt(ts=found["times"]),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
            adjoint=diffrax.ForwardMode(),
        )
        return jnp.sum((solution.ys - observed) ** 2) / (2 * found["noise"] ** 2)

    assert jnp.max(jnp.abs(jax.jit(jax.jacfwd(loss))(fit))) < 1e-6
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(loss)))(fit)
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    np.testing.assert_allclose(found["standard_errors"], errors, rtol=1e-6)
    miss = fit - np.log(found["true_rates"])
    assert miss @ hessian @ miss < 18.5  # 99.9 % of chi² of four degrees of freedom
    # A standard deviation of 200 numbers is known to 5 %.
    np.testing.assert_allclose(found["spread"], errors, rtol=0.2)


@pytest.mark.slow
def test_digits(run):
    found = run("digits")
    assert found["test_accuracy"] > 0.88
    assert found["adam_accuracy"] > 0.9
    assert found["adam_loss"] < found["forward_loss"] < 0.3


@pytest.mark.slow
def test_pinn(run):
    found = run("pinn")
    assert found["relative_error"] < 0.01
    point = jnp.array([0.3, 0.6])
    x, y = 0.3, 0.6  # the source by hand: u = exp(x) sin πx sin 2πy
    across = (1 - 5 * np.pi**2) * np.sin(np.pi * x) + 2 * np.pi * np.cos(np.pi * x)
    expected = np.exp(x) * np.sin(2 * np.pi * y) * across
    assert found["source"](point) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_kinetic_energy(run):
    found = run("kinetic_energy")
    np.testing.assert_allclose(found["dot_energies"], 3, atol=2e-3)
    assert found["ours"] == pytest.approx(float(found["theirs"]), rel=1e-4)
    # The variational principle, within the error; and better than no Jastrow factor,
    # whose energy is -2.75.
    assert found["exact"] - 3 * found["best_error"] < found["best_energy"] < -2.86
    assert found["best_error"] < 0.003


@pytest.mark.slow
def test_sparse_newton(run):
    found = run("sparse_newton")
    assert found["slopes"][-1] < 1e-12
    assert found["stored"] == (3 * (found["cells"] - 1) - 2) ** 2  # nine neighbours
    heights = found["heights"]
    area, slope = jax.value_and_grad(found["area"])(heights)
    assert jnp.max(jnp.abs(slope)) < 1e-12
    by_scipy = scipy.optimize.minimize(
        jax.jit(jax.value_and_grad(found["area"])),
        np.zeros(heights.size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-7},
    )
    assert area <= by_scipy.fun <= area + 1e-6


@pytest.mark.slow
def test_lora(run):
    found = run("lora")
    results, before = found["results"], found["loss_before"]
    assert before < np.log(256) / 2  # of which half is known
    assert results["fomoh_ap()"] < before - 0.05
    assert results["Adam"] < results["Adam, last layer"] < before
    assert results["Adam"] < results["fomoh_ap()"] < results["Adam, last layer"] + 0.01
    best_of_mezo = min(loss for name, loss in results.items() if "MeZO" in name)
    assert results["fomoh_ap()"] < best_of_mezo < before


@pytest.mark.slow
def test_own_primitive(run):
    found = run("own_primitive")
    assert len(found["errors"]) == 4
    assert max(found["errors"].values()) < 1e-12
    w, x = found["lambert_w"](jnp.array(2.0)), 2.0
    assert w * jnp.exp(w) == pytest.approx(x, rel=1e-14)
    assert found["values_by_hand"] <= found["values_of_family"]
    assert found["values_of_family"] < found["values_of_generic"]


@pytest.mark.slow
def test_own_optimiser(run):
    found = run("own_optimiser")
    assert found["cubic_error"] < 1e-12
    losses = found["losses"]
    assert losses["blocks and gradient"][-1] < 1e-12
    assert losses["trust region"][-1] < 1e-12
    directions = found["block"](3).sample(jax.random.key(1), jnp.zeros(7), None)
    np.testing.assert_array_equal(directions @ directions.T, np.eye(3))
