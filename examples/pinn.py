# %% [markdown]
# # A physics-informed network
#
# This tutorial solves Poisson's equation in two dimensions by a neural network. The
# loss contains the Laplacian of the network, which `laplacian` carries through one
# forward pass, and optax minimises it by L-BFGS through that Laplacian. The guide is
# [Laplacians](../guide/laplacians.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import fomoh_jax

# %% [markdown]
# ## The equation
#
# We look for u on the unit square with Δu = f inside and u = 0 on the boundary. To know
# the error, we choose a solution and take f from it by `jax.hessian`, which shares no
# code with the Laplacian of the network.


# %%
def exact(point):
    x, y = point
    return jnp.sin(jnp.pi * x) * jnp.sin(2 * jnp.pi * y) * jnp.exp(x)


def source(point):
    return jnp.trace(jax.hessian(exact)(point))


# %% [markdown]
# ## The network
#
# A factor makes the network zero on the boundary, whatever its weights are. Then the
# equation inside the square is all that remains to be learnt.


# %%
def network(params, point):
    x, y = point
    hidden = point
    for weights, bias in params[:-1]:
        hidden = jnp.tanh(hidden @ weights + bias)
    weights, bias = params[-1]
    return x * (1 - x) * y * (1 - y) * (hidden @ weights + bias)[0]


def initialise(key, widths):
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(key, (a, b)) / a**0.5, jnp.zeros(b))
        for key, a, b in zip(keys, widths[:-1], widths[1:])
    ]


params = initialise(jax.random.key(0), (2, 24, 24, 1))
print("parameters:", sum(leaf.size for leaf in jax.tree.leaves(params)))

# %% [markdown]
# ## The loss
#
# The loss is the mean squared residual of the equation at random points of the square.
# `laplacian(f)` is a function like `jax.grad(f)`, and `jax.vmap` maps it over the
# points.

# %%
points = jax.random.uniform(jax.random.key(1), (600, 2))
sources = jax.jit(jax.vmap(source))(points)


def residual(params, point, source):
    laplacian = fomoh_jax.laplacian(lambda point: network(params, point))(point)
    return laplacian - source


def loss(params):
    residuals = jax.vmap(residual, in_axes=(None, 0, 0))(params, points, sources)
    return jnp.mean(residuals**2) / jnp.mean(sources**2)


first = fomoh_jax.laplacian(lambda point: network(params, point))(points[0])
second = jnp.trace(jax.hessian(lambda point: network(params, point))(points[0]))
print(f"Laplacian {first:.6f}, trace of jax.hessian {second:.6f}")

# %% [markdown]
# ## Training
#
# L-BFGS takes gradients of the loss. They pass through the Laplacian by reverse mode,
# since what `laplacian` emits is ordinary JAX.

# %%
tx = optax.lbfgs()
value_and_grad = optax.value_and_grad_from_state(loss)


@jax.jit
def make_steps(params, state):
    def step(carry, _):
        params, state = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = tx.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, state), length=500)


(params, _), losses = make_steps(params, tx.init(params))
print(f"loss: {losses[0]:.3f} at the start, {losses[-1]:.1e} at the end")

# %% [markdown]
# ## The error
#
# We compare with the exact solution on a grid, where the network was not trained.

# %%
axis = jnp.linspace(0, 1, 65)
grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
found = jax.vmap(jax.vmap(lambda point: network(params, point)))(grid)
expected = jax.vmap(jax.vmap(exact))(grid)
error = found - expected
relative_error = float(jnp.linalg.norm(error) / jnp.linalg.norm(expected))
print(f"relative error of the solution: {relative_error:.1e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5))
lines = left.contour(axis, axis, found, levels=9, colors="black")
left.clabel(lines, fontsize=8)
left.set(xlabel="x", ylabel="y", title="the network's solution")
image = right.imshow(jnp.abs(error), origin="lower", extent=(0, 1, 0, 1), cmap="Greys")
right.set(xlabel="x", ylabel="y", title="absolute error")
figure.colorbar(image, ax=right)
figure.tight_layout()

# %%
figure, panel = plt.subplots(figsize=(6, 3.5))
panel.semilogy(losses, color="black")
panel.set(xlabel="iteration of L-BFGS", ylabel="relative squared residual")
figure.tight_layout()
