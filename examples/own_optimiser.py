# %% [markdown]
# # An optimiser of your own
#
# This tutorial writes the three parts of a second-order optimiser: a source of
# directions, which says where the hyperplane points; a descent, which says which step
# to take on it; and a search, which says how large the step is. `Solver` combines the
# last two, `scale_by_hyperplane` all three, and the result is a link of an optax chain.
# The guide is [optimisers](../guide/optimisers.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from jax.flatten_util import ravel_pytree

from fomoh_jax import QuadraticModel, directions, scale_by_hyperplane, solvers
from fomoh_jax.solvers import Descent, Search, Solver, Step

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Directions: a block of neighbouring coordinates
#
# A source has a size k and a function `sample(key, params, updates)`. It returns a tree
# like the parameters whose leaves have a leading axis k. Ours picks k neighbouring
# coordinates at random, so that each step minimises over a block of variables.


# %%
def block(k):
    def sample(key, params, updates):
        flat, unravel = ravel_pytree(params)
        first = jax.random.randint(key, (), 0, flat.size)
        picked = (first + jnp.arange(k)) % flat.size
        return jax.vmap(unravel)(jax.nn.one_hot(picked, flat.size, dtype=flat.dtype))

    return directions.Directions(k, sample)


example = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
print(block(2).sample(jax.random.key(0), example, None))

# %% [markdown]
# ## Descent: cubic regularisation
#
# On the hyperplane a step is −Vκ, and the model of the loss is f − κ·s + ½ κᵀCκ with
# the slopes s = Vᵀ∇f and the curvature C = VᵀHV. Nesterov and Polyak (2006) add
# |Vκ|³/(3η) to it. The sum has a minimum whatever the curvature is, and a larger size η
# leads further. The minimum satisfies
#
# (C + r/η VᵀV) κ = s with r = |Vκ|,
#
# and we find the length r by bisection. The Cholesky factor of the Gram matrix VᵀV
# leads to an orthonormal basis of the hyperplane and back. (We leave out the hard case,
# where the slope along the most negative curvature is zero.) A descent need not care
# about numbers that are not finite: `Solver` then makes a step of zero.


# %%
def cubic():
    def step(model, gram, size, last, state):
        factor = jnp.linalg.cholesky(gram)
        inverse = jnp.linalg.inv(factor)
        curvature, slope = inverse @ model.curvature @ inverse.T, inverse @ model.slope
        eigenvalues, basis = jnp.linalg.eigh(curvature)
        along = basis.T @ slope
        # The shifted curvature must be positive.
        lowest = jnp.maximum(0, -size * eigenvalues[0]) * (1 + 1e-9) + 1e-12

        def step_of(length):
            return along / (eigenvalues + length / size)

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            too_long = jnp.linalg.norm(step_of(middle)) > middle
            return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

        highest = lowest + jnp.sqrt(size * jnp.linalg.norm(along))
        _, length = jax.lax.fori_loop(0, 60, halve, (lowest, highest))
        coefficients = inverse.T @ (basis @ step_of(length))
        return Step(coefficients, length, size), state

    return Descent(step)


# %% [markdown]
# A test on one model: the curvature is negative along the first direction, and the step
# still satisfies the equation.

# %%
model = QuadraticModel(
    value=jnp.array(0.0),
    slope=jnp.array([1.0, 2.0]),
    curvature=jnp.array([[-1.0, 0.5], [0.5, 3.0]]),
)
solver = Solver(cubic(), solvers.searches.constant(0.7))
kappa, _ = solver.solve(model, jnp.eye(2), solver.init(2))
left_side = (model.curvature + jnp.linalg.norm(kappa) / 0.7 * jnp.eye(2)) @ kappa
print("κ", kappa, "left side", left_side, "slope", model.slope)
cubic_error = float(jnp.max(jnp.abs(left_side - model.slope)))

# %% [markdown]
# ## Search: double or quarter
#
# A search keeps a size and learns from the outcome of each step: the loss before it,
# and by how much the model predicted that it falls and by how much it fell. With
# `looks_ahead=True` the outcome is known before the step is taken, at the price of one
# more evaluation of the loss, and `learn` also says whether to take it.


# %%
def double_or_quarter(initial):
    def learn(outcome, size):
        came_true = outcome.actual > outcome.predicted / 2
        size = jnp.where(came_true, jnp.minimum(2 * size, 1e6), size / 4)
        return outcome.actual > 0, size

    return Search(
        size=lambda size: size,
        learn=learn,
        init=lambda: jnp.array(initial),
        looks_ahead=True,
    )


# %% [markdown]
# ## The optimiser
#
# The three parts become a link of a chain. The updates of `scale_by_hyperplane` point
# uphill, as a gradient does, so that the last link turns them. Sources of directions
# add up: the second optimiser spans the gradient as well, which the chain hands in. The
# third is the second with the solver of the library.

# %%
own_solver = Solver(cubic(), double_or_quarter(1.0))
with_gradient = block(8) + directions.incoming()
optimisers = {
    "blocks": scale_by_hyperplane(block(8), own_solver),
    "blocks and gradient": scale_by_hyperplane(with_gradient, own_solver),
    "trust region": scale_by_hyperplane(with_gradient, solvers.trust_region()),
}


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def minimise(link, steps=600):
    tx = optax.chain(link, optax.scale(-1.0))
    start = jnp.full(20, -0.5)

    def step(carry, _):
        x, state = carry
        value, gradient = jax.value_and_grad(rosenbrock)(x)
        updates, state = tx.update(gradient, state, x, value_fn=rosenbrock)
        return (optax.apply_updates(x, updates), state), value

    carry = (start, tx.init(start))
    (x, _), values = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(carry)
    return x, values


losses = {}
for name, link in optimisers.items():
    minimum, losses[name] = minimise(link)
    print(
        f"{name:20s} loss after 100 steps {losses[name][100]:.1e}, "
        f"after 599 {losses[name][-1]:.1e}"
    )

# %% [markdown]
# Blocks alone are slow in the curved valley of this function. With the gradient beside
# them, both solvers reach the minimum.

# %%
figure, panel = plt.subplots(figsize=(6, 3.5))
for (name, values), style in zip(losses.items(), ["-", "--", ":"]):
    panel.semilogy(jnp.maximum(values, 1e-30), style, color="black", label=name)
panel.set(xlabel="step", ylabel="loss", title="Rosenbrock, 20 variables")
panel.legend()
figure.tight_layout()
