# %% [markdown]
# # Getting started
#
# This tutorial shows in ten minutes what the library does: derivatives of first and
# second order from one forward pass, an optimiser without a learning rate, and a
# network that is trained without a backward pass. The guides say more about
# [derivatives](../guide/derivatives.md), [optimisers](../guide/optimisers.md) and
# [gradients without a backward pass](../guide/forward-gradients.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from jax.flatten_util import ravel_pytree

import fomoh_jax
from fomoh_jax import solvers

# %% [markdown]
# ## One forward pass: value, slopes, curvature
#
# A hyper-dual number carries a value, two directional derivatives and the second
# derivative along both directions. `hyper_jvp` evaluates a function on one. Its
# arguments are those of `jax.jvp`, with a second tuple of tangents.


# %%
def height(x):
    return x[0] ** 2 * jnp.sin(x[1])


point = jnp.array([3.0, 0.5])
east, north = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
value, slope_east, slope_north, mixed = fomoh_jax.hyper_jvp(
    height, (point,), (east,), (north,)
)
print(f"value             {value:.5f}   x² sin y    {9 * jnp.sin(0.5):.5f}")
print(f"slope in x        {slope_east:.5f}   2 x sin y   {6 * jnp.sin(0.5):.5f}")
print(f"slope in y        {slope_north:.5f}   x² cos y    {9 * jnp.cos(0.5):.5f}")
print(f"mixed derivative  {mixed:.5f}   2 x cos y   {6 * jnp.cos(0.5):.5f}")

# %% [markdown]
# Most programs need more than two directions. `quadratic_model` takes k of them,
# stacked along a leading axis, and returns the value, k slopes and the k×k curvature.

# %%
directions = jnp.stack([east, north, (east + north) / jnp.sqrt(2.0)])
model = fomoh_jax.quadratic_model(height, (point,), (directions,))
print("slope", model.slope)
print("curvature", model.curvature, sep="\n")

# %% [markdown]
# The operators take all coordinates as directions. They agree with those of JAX.

# %%
hessian = fomoh_jax.hessian(height)(point)
laplacian = fomoh_jax.laplacian(height)(point)
print("largest difference to jax.hessian:")
print(jnp.max(jnp.abs(hessian - jax.hessian(height)(point))))
print(f"Laplacian {laplacian:.5f}, trace of the Hessian {jnp.trace(hessian):.5f}")

# %% [markdown]
# They also take programs that reverse mode refuses, such as a loop whose number of
# iterations depends on the data. The next function finds a cube root by Newton's
# method. Its second derivative is −2/9 x^(−5/3).


# %%
def cube_root(x):
    def not_converged(y):
        return jnp.abs(y**3 - x) > 1e-6 * x

    return jax.lax.while_loop(not_converged, lambda y: (2 * y + x / y**2) / 3, x)


two = jnp.array(2.0)
try:
    jax.grad(cube_root)(two)
except ValueError as error:
    print("jax.grad raises:", str(error).split(".")[0])
second_derivative = fomoh_jax.hessian(cube_root)(two)
exact_second_derivative = -2 / 9 * 2.0 ** (-5 / 3)
print(
    f"fomoh_jax.hessian: {second_derivative:.5f}, exact: {exact_second_derivative:.5f}"
)

# %% [markdown]
# ## Composition
#
# What the operators return are ordinary JAX functions. Here `jax.vmap` maps the
# Laplacian over a grid of points, and `jax.jit` compiles it.

# %%
axis = jnp.linspace(-2.0, 2.0, 81)
grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
laplacians = jax.jit(jax.vmap(jax.vmap(fomoh_jax.laplacian(height))))(grid)

figure, panel = plt.subplots(figsize=(6, 3.5))
lines = panel.contour(axis, axis, laplacians, levels=9, colors="black")
panel.clabel(lines)
panel.set(xlabel="x", ylabel="y", title="Laplacian of x² sin y")
figure.tight_layout()

# %% [markdown]
# ## An optimiser without a learning rate
#
# `fomoh_kd(k)` minimises the quadratic model along k random directions at each step.
# With as many directions as parameters this is Newton's method, and
# `solvers.trust_region()` makes it safe far from the minimum. It is an optax
# transformation whose `update` takes the loss instead of a gradient.


# %%
def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


tx = fomoh_jax.fomoh_kd(k=2, solver=solvers.trust_region())
minimum = jnp.array([-1.2, 1.0])
state = tx.init(minimum)


@jax.jit
def newton_step(x, state):
    updates, state = tx.update(None, state, x, value_fn=rosenbrock)
    return optax.apply_updates(x, updates), state


for number in range(31):
    if number % 10 == 0:
        print(f"after {number:2d} steps: loss {rosenbrock(minimum):.2e}")
    minimum, state = newton_step(minimum, state)
print("minimum at", minimum)

# %% [markdown]
# ## A network without a backward pass
#
# A random direction among thousands of parameters says little about the gradient. For
# networks, `forward_value_and_grad` perturbs activations instead. It takes the loss of
# one example, cuts the program into blocks, and estimates the gradient by two forward
# passes. The estimate has no bias: the average of many approaches the gradient.


# %%
def loss_of_one(params, example):
    x, y = example
    hidden = jnp.tanh(params["in"] * x + params["bias"])
    hidden = jnp.tanh(hidden @ params["middle"])
    return (hidden @ params["out"] - y) ** 2


def mean_loss(params, batch):
    return jnp.mean(jax.vmap(loss_of_one, in_axes=(None, 0))(params, batch))


normal = jax.random.normal
keys = jax.random.split(jax.random.key(0), 4)
params = {
    "in": 2 * normal(keys[0], (32,)),
    "bias": normal(keys[1], (32,)),
    "middle": normal(keys[2], (32, 32)) / 6,
    "out": normal(keys[3], (32,)) / 6,
}
x = jnp.linspace(-3, 3, 64)
batch = (x, jnp.sin(2 * x))

estimate = jax.vmap(fomoh_jax.forward_value_and_grad(loss_of_one), (None, None, 0))
_, estimates = jax.jit(estimate)(
    params, batch, jax.random.split(jax.random.key(1), 1000)
)
gradient = jax.grad(mean_loss)(params, batch)


def cosine(a, b):
    a, _ = ravel_pytree(a)
    b, _ = ravel_pytree(b)
    return float(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


cosine_of_one = cosine(jax.tree.map(lambda g: g[0], estimates), gradient)
cosine_of_mean = cosine(jax.tree.map(lambda g: jnp.mean(g, 0), estimates), gradient)
print(
    f"cosine with the gradient: of one estimate {cosine_of_one:.3f}, "
    f"of the mean of 1000 {cosine_of_mean:.3f}"
)

# %% [markdown]
# `fomoh_ap()` trains along such estimates, again without a learning rate: it finds how
# far to go from the curvature along them.

# %%
tx = fomoh_jax.fomoh_ap()
state = tx.init(params)


@jax.jit
def train_step(params, state):
    updates, state = tx.update(None, state, params, value_fn=loss_of_one, batch=batch)
    return optax.apply_updates(params, updates), state


losses = [float(mean_loss(params, batch))]
for _ in range(1000):
    params, state = train_step(params, state)
    losses.append(float(state[0].value))
final_loss = float(mean_loss(params, batch))
print(f"loss: {losses[0]:.3f} before, {final_loss:.5f} after {len(losses) - 1} steps")

figure, panel = plt.subplots(figsize=(6, 3.5))
panel.semilogy(losses, color="black")
panel.set(xlabel="step", ylabel="mean squared error")
figure.tight_layout()

# %% [markdown]
# Where backpropagation works, it is the better way to train a network:
# [when to use what](../when-to-use-what.md) says where the methods of this library are
# worth their noise. The other tutorials are about such cases.
