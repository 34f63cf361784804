# %% [markdown]
# # The kinetic energy of a wave function
#
# This tutorial computes local energies of wave functions, whose kinetic part is a
# Laplacian, and from them the energy of the helium atom by variational Monte Carlo,
# with error bars. `value_grad_and_laplacian` gives the Laplacian and the gradient that
# comes with it in one forward pass. The guide is [Laplacians](../guide/laplacians.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fomoh_jax

# %% [markdown]
# ## Local kinetic energy
#
# For a wave function ψ in atomic units (energies in hartree, lengths in bohr), the
# local kinetic energy is −½ Δψ/ψ. In terms of log ψ it is −½ (Δ log ψ + |∇ log ψ|²).


# %%
def kinetic_energy(log_psi, electrons):
    _, gradient, laplacian = fomoh_jax.value_grad_and_laplacian(log_psi)(electrons)
    return -(laplacian + jnp.sum(gradient**2)) / 2


# %% [markdown]
# ## A check: an eigenstate has the same local energy everywhere
#
# Taut (1993) found the exact ground state of two electrons that repel each other in the
# potential r²/2 in two dimensions. Its energy is 3 hartree. The local energy must be 3
# at every point, so that any error of the kinetic energy would show.


# %%
def log_psi_of_dot(electrons):
    distance = jnp.linalg.norm(electrons[0] - electrons[1])
    return jnp.log1p(distance) - jnp.sum(electrons**2) / 2


def energy_of_dot(electrons):
    distance = jnp.linalg.norm(electrons[0] - electrons[1])
    potential = jnp.sum(electrons**2) / 2 + 1 / distance
    return kinetic_energy(log_psi_of_dot, electrons) + potential


positions = jax.random.normal(jax.random.key(0), (1000, 2, 2))
dot_energies = jax.jit(jax.vmap(energy_of_dot))(positions)
print(f"local energies from {jnp.min(dot_energies):.4f} to {jnp.max(dot_energies):.4f}")

# %% [markdown]
# ## Helium
#
# Two electrons move around a nucleus of charge 2. The trial wave function is a product
# of the ground state of an electron at that nucleus, for each, and a Jastrow factor
# with one parameter β, which keeps the electrons apart. Both have the cusps that cancel
# the infinities of the potential.


# %%
def log_psi(beta, electrons):
    radii = jnp.linalg.norm(electrons, axis=1)
    distance = jnp.linalg.norm(electrons[0] - electrons[1])
    return -2 * jnp.sum(radii) + distance / (2 * (1 + beta * distance))


def local_energy(beta, electrons):
    radii = jnp.linalg.norm(electrons, axis=1)
    distance = jnp.linalg.norm(electrons[0] - electrons[1])
    potential = -2 * jnp.sum(1 / radii) + 1 / distance
    kinetic = kinetic_energy(lambda electrons: log_psi(beta, electrons), electrons)
    return kinetic + potential


# %% [markdown]
# We compare the kinetic energy with the trace of `jax.hessian` at one configuration.


# %%
def by_jax(electrons):
    flat = lambda x: log_psi(0.3, x.reshape(2, 3))
    x = electrons.ravel()
    gradient, hessian = jax.grad(flat)(x), jax.hessian(flat)(x)
    return -(jnp.trace(hessian) + jnp.sum(gradient**2)) / 2


electrons = jax.random.normal(jax.random.key(1), (2, 3))
ours = kinetic_energy(lambda x: log_psi(0.3, x), electrons)
theirs = by_jax(electrons)
print(f"kinetic energy {ours:.6f} hartree, by jax.hessian {theirs:.6f} hartree")

# %% [markdown]
# ## Variational Monte Carlo
#
# The mean of the local energy over configurations that are distributed as ψ² is the
# energy of the wave function. Metropolis's method samples them: 1,000 walkers make
# random moves, and accept a move with the probability ψ²(new)/ψ²(old). We measure after
# every tenth move. The walkers are independent of each other, so that the spread of
# their means gives the error bar.

# %%
walkers, warm_up, measurements, moves = 1000, 300, 100, 10


def move(beta, electrons, key):
    propose, decide = jax.random.split(key)
    proposed = electrons + 0.4 * jax.random.normal(propose, electrons.shape)
    ratio = jnp.exp(2 * (log_psi(beta, proposed) - log_psi(beta, electrons)))
    return jnp.where(jax.random.uniform(decide) < ratio, proposed, electrons)


def walk(beta, electrons, key, moves):
    def body(electrons, key):
        return move(beta, electrons, key), None

    return jax.lax.scan(body, electrons, jax.random.split(key, moves))[0]


@jax.jit
def mean_local_energy(beta, key):
    """The mean over the path of one walker."""
    start, first, key = jax.random.split(key, 3)
    electrons = walk(beta, jax.random.normal(start, (2, 3)), first, warm_up)

    def body(electrons, key):
        electrons = walk(beta, electrons, key, moves)
        return electrons, local_energy(beta, electrons)

    _, energies = jax.lax.scan(body, electrons, jax.random.split(key, measurements))
    return jnp.mean(energies)


@jax.jit
def energy_and_error(beta):
    keys = jax.random.split(jax.random.key(2), walkers)
    means = jax.vmap(mean_local_energy, in_axes=(None, 0))(beta, keys)
    return jnp.mean(means), jnp.std(means) / jnp.sqrt(walkers)


betas = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
results = np.array([energy_and_error(beta) for beta in betas])
energies, errors = results.T
for beta, energy, error in zip(betas, energies, errors):
    print(f"β = {beta:.2f}: {energy:.4f} ± {error:.4f} hartree")

# %% [markdown]
# The energy of every wave function lies above that of the ground state, which Pekeris
# (1958) computed. One parameter does not reach it. More come closer: `python -m
# experiments.vmc` in the repository trains a network instead of β.

# %%
exact = -2.903724
best = int(np.argmin(energies))
best_energy, best_error = float(energies[best]), float(errors[best])
print(f"lowest: {best_energy:.4f} ± {best_error:.4f} hartree at β = {betas[best]:.2f}")
print(f"above the exact energy by {best_energy - exact:.4f} hartree")

figure, panel = plt.subplots(figsize=(6, 3.5))
panel.errorbar(betas, energies, 2 * errors, fmt="o", color="black", capsize=3)
panel.axhline(exact, color="grey", ls="--", label="exact")
panel.set(xlabel="β (1/bohr)", ylabel="energy (hartree)")
panel.legend()
figure.tight_layout()
