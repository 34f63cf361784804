"""The wave functions are those of electrons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import kinetic, workloads
from experiments.benchmarks.wave_functions import electrons


@pytest.mark.parametrize("name", kinetic.WAVE_FUNCTIONS)
def test_electrons_of_equal_spin_are_interchangeable(name):
    """In modulus: an exchange changes the sign."""
    _, log_psi = made(name)
    x = electrons.positions(1, 8)[0].astype(np.float64).reshape(8, 3)
    same, other = x[[1, 0, 2, 3, 4, 5, 7, 6]], x[[4, 1, 2, 3, 0, 5, 6, 7]]
    expected, swapped, others = (log_psi(y.ravel()).real for y in (x, same, other))
    np.testing.assert_allclose(swapped, expected, rtol=1e-12)
    assert abs(others - expected) > 1e-6


def test_a_solid_is_periodic():
    model, log_psi = made("solid")
    x = electrons.positions(1, 8)[0].astype(np.float64)
    moved = x + model.length * (np.arange(24) == 4)
    np.testing.assert_allclose(log_psi(moved).real, log_psi(x).real, rtol=1e-12)


def made(name):
    """A small one, and the function of positions."""
    model = kinetic.WAVE_FUNCTIONS[name](**kinetic.SMALL)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(24))
    params = workloads.cast(params, jnp.dtype("float64"))
    return model, jax.jit(lambda x: model.apply(params, x))
