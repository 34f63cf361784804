# %% [markdown]
# # Newton's method with a sparse Hessian
#
# This tutorial computes a minimal surface, a problem of more than two thousand
# variables, by Newton's method in a few iterations. `sparse_hessian` finds by itself
# which entries of the Hessian are not zero, computes these alone, and scipy solves the
# sparse system. The guide is [derivatives](../guide/derivatives.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse

import fomoh_jax

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The problem
#
# A soap film spans a frame over the unit square. Its height is given at the frame, and
# inside it makes the area as small as possible. We divide the square into cells of
# width 1/50; the unknowns are the heights at the 49×49 inner corners of the cells.

# %%
cells = 50
ticks = np.linspace(0, 1, cells + 1)
frame = np.sin(2 * np.pi * ticks)[:, None] + np.cos(np.pi * ticks)
frame[1:-1, 1:-1] = 0


def surface(inner):
    return jnp.pad(inner.reshape(cells - 1, cells - 1), 1) + frame


def area(inner):
    z = surface(inner)
    one_diagonal = z[1:, 1:] - z[:-1, :-1]
    other_diagonal = z[1:, :-1] - z[:-1, 1:]
    slopes = (one_diagonal**2 + other_diagonal**2) * cells**2 / 2
    return jnp.sum(jnp.sqrt(1 + slopes)) / cells**2


heights = jnp.zeros((cells - 1) ** 2)
print(f"{heights.size} unknowns, area {area(heights):.4f} at the start")

# %% [markdown]
# ## The Hessian and its pattern
#
# Each cell sees four corners, so that a row of the Hessian has at most nine entries.
# `sparse_hessian` reads that from the program while it traces it, and returns a
# `jax.experimental.sparse.BCOO` matrix. Nobody has to state the pattern.

# %%
sparse_hessian = jax.jit(fomoh_jax.sparse_hessian(area))


def hessian_for_scipy(x):
    found = sparse_hessian(x)
    rows, columns = np.asarray(found.indices).T
    entries = (np.asarray(found.data), (rows, columns))
    return scipy.sparse.csc_array(entries, shape=found.shape)


hessian = hessian_for_scipy(heights)
stored = hessian.nnz
share = stored / heights.size**2
print(f"{stored} entries, {share:.2%} of a dense matrix")

figure, panel = plt.subplots(figsize=(4.5, 4.5))
panel.spy(hessian[:300, :300], markersize=1, color="black")
panel.set(xlabel="column", ylabel="row", title="the first 300 rows and columns")
figure.tight_layout()

# %% [markdown]
# A product with a random vector agrees with the Hessian-vector product of plain JAX.

# %%
gradient = jax.grad(area)
vector = jax.random.normal(jax.random.key(0), heights.shape)
_, product = jax.jvp(gradient, (heights,), (vector,))
print(f"largest difference: {np.max(np.abs(hessian @ vector - product)):.1e}")

# %% [markdown]
# ## Newton's method
#
# The area is a convex function of the heights, so that Newton's direction always leads
# downhill. We halve the step until the area falls by some part of what the slope
# promises.

# %%
area_and_gradient = jax.jit(jax.value_and_grad(area))


def newton_step(x):
    value, slope = area_and_gradient(x)
    direction = -scipy.sparse.linalg.spsolve(hessian_for_scipy(x), np.asarray(slope))
    size = 1.0
    while area(x + size * direction) > value + 1e-4 * size * (slope @ direction):
        size /= 2
    return x + size * direction, size


areas, slopes = [], []
for number in range(20):
    value, slope = area_and_gradient(heights)
    areas.append(float(value))
    slopes.append(float(jnp.max(jnp.abs(slope))))
    print(f"after {number:2d} steps: area {value:.10f}, largest slope {slopes[-1]:.1e}")
    if slopes[-1] < 1e-12:
        break
    heights, size = newton_step(heights)

# %% [markdown]
# Near the minimum each step about doubles the number of correct digits, as it should
# with an exact Hessian.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5))
lines = left.contour(ticks, ticks, surface(heights).T, levels=11, colors="black")
left.clabel(lines, fontsize=8)
left.set(xlabel="x", ylabel="y", title="height of the surface")
right.semilogy(slopes, "o-", color="black")
right.set(xlabel="step", ylabel="largest element of the gradient")
figure.tight_layout()
