"""Variational Monte Carlo beside energies, densities and gradients in closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vmc import __main__ as vmc
from experiments.vmc import optimisation, report, sampling, systems, wave_function
from experiments.vmc.optimisation import Config
from experiments.vmc.systems import SYSTEMS
from tests.reference import normal

DOT, HELIUM = SYSTEMS["dot"], SYSTEMS["helium"]


@functools.cache
def trained(name):
    """Weights like those of a trained network: not zero in any layer."""
    params = wave_function.initial_parameters(jax.random.key(1), (8,))
    (layer, (weight, bias)), system = params, SYSTEMS[name]
    params = [layer, (0.3 * normal(*weight.shape), bias)]
    return system, functools.partial(wave_function.log_psi, system, params)


def test_local_energy_of_taut_s_wave_function_is_three_everywhere():
    def log_psi(x):
        radii, distance = systems.distances(x)
        return jnp.log(1 + distance) - jnp.sum(radii**2) / 2

    energy = jax.jit(jax.vmap(lambda x: systems.local_energy(DOT, log_psi, x)))
    np.testing.assert_allclose(energy(normal(50, 2, 2)), DOT.reference, rtol=1e-10)


@pytest.mark.parametrize("name, energy", [("dot", 2.0), ("helium", -4.0)])
def test_without_repulsion_the_envelope_is_the_ground_state(name, energy):
    system = SYSTEMS[name]

    def local(x):
        log_psi = lambda x: jnp.sum(system.envelope(systems.distances(x)[0]))
        whole = systems.local_energy(system, log_psi, x)
        return whole - 1 / systems.distances(x)[1]

    found = jax.jit(jax.vmap(local))(normal(50, 2, system.dimension))
    np.testing.assert_allclose(found, energy, rtol=1e-10)


@pytest.mark.slow
def test_kinetic_energy_is_that_of_the_hessian_of_psi():
    _, log_psi = trained("helium")

    def both(x):
        psi = lambda flat: jnp.exp(log_psi(flat.reshape(x.shape)))
        expected = -jnp.trace(jax.hessian(psi)(x.reshape(-1))) / 2 / jnp.exp(log_psi(x))
        return systems.kinetic_energy(log_psi, x), expected

    found, expected = jax.jit(both)(normal(2, 3, seed=1))
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("name", SYSTEMS)
def test_wave_function_is_symmetric_and_its_cusps_cancel_the_singularities(name):
    system, log_psi = trained(name)
    both = jax.jit(lambda x: (log_psi(x), systems.local_energy(system, log_psi, x)))
    first, second = x = np.asarray(normal(2, system.dimension, seed=1))
    np.testing.assert_allclose(both(x), both(x[::-1]), rtol=1e-12)
    for close in (1e-4, 1e-7):
        near = close * second / np.linalg.norm(second)
        assert abs(both(np.stack([first, first + near]))[1]) < 20  # they meet
        assert abs(both(np.stack([first, near]))[1]) < 20  # one is at the nucleus


def gaussian(exponent, x):
    return -exponent * jnp.sum(x**2) / 2


def walked(count, moves, width):
    """Walkers that start with the density ψ² of a Gaussian, before and after."""
    before = normal(count, 2, 2) / 2**0.5
    walkers = sampling.Walkers(before, jnp.array(width))
    log_psi = functools.partial(gaussian, 1.0)
    walk = jax.jit(lambda key, w: sampling.walk(log_psi, key, w, moves))
    return before, *walk(jax.random.key(0), walkers)


def test_a_move_keeps_the_density_and_is_in_detailed_balance():
    before, (after, _), acceptance = walked(100_000, 1, width=0.7)
    assert 0.3 < acceptance < 0.7
    x, y = (np.square(z.reshape(len(z), -1)) for z in (before, after))
    # Under ψ² each coordinate has variance 1/2 and fourth moment 3/4.
    for power, expected in ((1, 1 / 2), (2, 3 / 4)):
        np.testing.assert_allclose(np.mean(y**power), expected, rtol=0.02)
    # To go from x to y is as likely as the reverse.
    flow = np.mean(x * y**2 - y * x**2, axis=1)
    assert abs(flow.mean()) < 4 * flow.std() / len(flow) ** 0.5
    assert flow.std() > 0.1


def test_width_is_adapted_to_the_acceptance():
    walkers = sampling.start(jax.random.key(0), 4, 2)
    assert sampling.adapted(walkers, jnp.array(0.9)).width > walkers.width
    assert sampling.adapted(walkers, jnp.array(0.1)).width < walkers.width
    same = sampling.adapted(walkers, jnp.array(0.5))
    np.testing.assert_array_equal(same.width, walkers.width)


def test_gradient_is_the_derivative_of_an_energy_in_closed_form():
    # Oscillators with ψ = exp(-a Σ r² / 2): E = Σ (a + 1 / a) / 4 of each coordinate.
    a, count = 1.5, 100_000
    x = normal(count, 2, 2) / (2 * a) ** 0.5
    energies = 2 * a + (1 - a**2) * jnp.sum(x**2, axis=(1, 2)) / 2
    gradient = optimisation.energy_gradient(gaussian, jnp.array(a), x, energies)
    np.testing.assert_allclose(gradient, 1 - 1 / a**2, rtol=0.03)


def test_clipping_moves_outliers_alone():
    energies = jnp.array([*np.linspace(-1, 1, 99), 1e6])
    bounded = optimisation.clipped(energies)
    np.testing.assert_array_equal(bounded[:-1], energies[:-1])
    assert bounded[-1] < 1e5


def test_error_bar_counts_correlated_samples_once():
    walkers, length = 400, 50
    independent = np.asarray(normal(length, walkers))
    found = report.estimate(independent)
    np.testing.assert_allclose(found.error, (length * walkers) ** -0.5, rtol=0.1)
    np.testing.assert_allclose(found.correlation, 1, rtol=0.2)
    repeated = np.repeat(independent, 10, axis=0)  # the same, and nothing new
    np.testing.assert_allclose(report.estimate(repeated).error, found.error)
    np.testing.assert_allclose(report.estimate(repeated).correlation, 10, rtol=0.2)


def test_quick_run_finds_the_dot_and_writes_a_figure_and_a_table(tmp_path, capsys):
    vmc.main(Config(systems=("dot",), quick=True, out=tmp_path))
    folder = tmp_path / "vmc-quick"
    assert (folder / "energy.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    (row,) = (line for line in text.splitlines() if line.startswith("| quantum dot"))
    energy, error, reference = map(float, row.split("|")[3:6])
    assert reference == 3.0
    assert abs(energy - reference) < 4 * error + 0.01
    assert error < 0.02


def test_bad_options_are_explained():
    for options, message in (
        ({"walkers": 1}, "--walkers must be at least 2"),
        ({"hidden": ()}, "--hidden must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            vmc.main(dataclasses.replace(Config(), **options))
