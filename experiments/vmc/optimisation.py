"""Minimise the energy by Adam, then measure it with fixed weights."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import study
from experiments.minimisation import take_step
from experiments.vmc import sampling, systems, wave_function
from experiments.vmc.systems import SYSTEMS, System

CLIP = 5.0  # mean absolute deviations from the median


@dataclasses.dataclass(frozen=True)
class Config:
    """Ground states of two electrons by variational Monte Carlo, float64."""

    systems: tuple[Literal[*SYSTEMS], ...] = tuple(SYSTEMS)
    """The systems whose ground states are computed."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the network's hidden layers."""
    walkers: int = 1024
    """Configurations at a time."""
    moves: int = 5
    """Metropolis moves between two evaluations of the local energy."""
    steps: int = 1000
    """Iterations of Adam."""
    learning_rate: float = 2e-2
    """Learning rate at the start; it decays to a hundredth along a cosine."""
    samples: int = 200
    """Evaluations of each walker's energy when the weights are final."""
    seeds: int = 3
    """Random initialisations."""
    quick: bool = False
    """Few iterations of few walkers, to see that all works."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder vmc."""


class Run(NamedTuple):
    """One seed.

    Attributes:
      energies: mean local energy at each iteration, ``[steps]``, in hartree.
      deviations: standard deviation of the local energy over the walkers, likewise.
      samples: local energies with the final weights, ``[samples, walkers]``.
      acceptance: fraction of the moves between those that were accepted.
      seconds: of all of it; of the first seed, with the compilation.
    """

    energies: np.ndarray
    deviations: np.ndarray
    samples: np.ndarray
    acceptance: float
    seconds: float


def make_run(system: System, config: Config) -> Callable[[int], Run]:
    """``run(seed)``; all the seeds share what it compiles."""
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps, alpha=0.01)
    tx = optax.adam(rate)
    log_psi = functools.partial(wave_function.log_psi, system)

    def advance(params, walkers, key):
        fixed = functools.partial(log_psi, params)
        walkers, acceptance = sampling.walk(fixed, key, walkers, config.moves)
        local_energy = functools.partial(systems.local_energy, system, fixed)
        return walkers, acceptance, jax.vmap(local_energy)(walkers.positions)

    def step(carry, key):
        params, state, walkers = carry
        walkers, acceptance, energies = advance(params, walkers, key)
        bounded = clipped(energies)
        gradient = energy_gradient(log_psi, params, walkers.positions, bounded)
        params, state = take_step(tx, params, state, gradient)
        walkers = sampling.adapted(walkers, acceptance)
        return (params, state, walkers), (jnp.mean(energies), jnp.std(energies))

    @jax.jit
    def optimise(params, walkers, key):
        keys = jax.random.split(key, config.steps)
        carry, records = lax.scan(step, (params, tx.init(params), walkers), keys)
        return carry[0], carry[2], records

    @jax.jit
    def measure(params, walkers, key):
        def sample(walkers, key):
            walkers, acceptance, energies = advance(params, walkers, key)
            return walkers, (energies, acceptance)

        forgotten = config.samples // 10  # the last weights were not those before them
        keys = jax.random.split(key, forgotten + config.samples)
        energies, acceptance = lax.scan(sample, walkers, keys)[1]
        return energies[forgotten:], jnp.mean(acceptance)

    def run(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        began = time.perf_counter()
        params = wave_function.initial_parameters(keys[0], config.hidden)
        walkers = sampling.start(keys[1], config.walkers, system.dimension)
        params, walkers, records = optimise(params, walkers, keys[2])
        samples, acceptance = measure(params, walkers, keys[3])
        curves = (*map(np.asarray, records), np.asarray(samples), float(acceptance))
        return Run(*curves, time.perf_counter() - began)

    return run


def clipped(energies: jax.Array) -> jax.Array:
    """Clips energies, so that no walker near a singularity decides a step."""
    median = jnp.median(energies)
    bound = CLIP * jnp.mean(jnp.abs(energies - median))
    return jnp.clip(energies, median - bound, median + bound)


def energy_gradient(
    log_psi: Callable, params: Any, x: jax.Array, energies: jax.Array
) -> Any:
    r"""The gradient of the energy, :math:`2 ⟨(E_L - ⟨E_L⟩) \nabla \log ψ⟩`.

    Args:
      log_psi: ``log_psi(params, x)`` of one configuration.
      params: where.
      x: configurations drawn from ψ², ``[walkers, 2, D]``.
      energies: their local energies, ``[walkers]``.
    """
    centred = energies - jnp.mean(energies)
    values = jax.vmap(log_psi, in_axes=(None, 0))
    return jax.grad(lambda params: 2 * jnp.mean(centred * values(params, x)))(params)


def optimise_all(config: Config) -> dict[str, list[Run]]:
    """Every seed of every system."""
    runs = {}
    chosen = {name: SYSTEMS[name] for name in config.systems}
    for name, system in study.progress(chosen, "system"):
        run = make_run(system, config)
        runs[name] = [run(seed) for seed in range(config.seeds)]
    return runs
