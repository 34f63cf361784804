# %% [markdown]
# # Fit an ODE by Newton's method, with standard errors
#
# This tutorial takes the Hessian of a loss through a diffrax solver with an adaptive
# step and its default adjoint, where `jax.hessian` raises. The Hessian serves twice: as
# the matrix of Newton's method, and, at the fit, as the inverse of the parameters'
# covariance. The guides on [derivatives](../guide/derivatives.md) and
# [optimisers](../guide/optimisers.md) describe the functions that are used.

# %%
import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fomoh_jax
from fomoh_jax import solvers

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The problem
#
# The Lotka-Volterra equations describe prey and predators. We observe the logarithms of
# both populations at 20 times, with Gaussian noise of a known standard deviation, and
# ask for the four rates. The loss is the negative logarithm of the likelihood, up to a
# constant. We parametrise the rates by their logarithms, since they are positive.

# %%
true_rates = jnp.array([1.1, 0.4, 0.1, 0.4])
names = ["growth of prey", "predation", "growth of predators", "death of predators"]
start = jnp.log(jnp.array([10.0, 5.0]))
times = jnp.linspace(0.5, 10.0, 20)
noise = 0.1


def field(t, log_populations, rates):
    prey, predators = jnp.exp(log_populations)
    growth, predation, conversion, death = rates
    return jnp.array([growth - predation * predators, conversion * prey - death])


@jax.jit
def solve(log_rates):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0=0.0,
        t1=times[-1],
        dt0=0.1,
        y0=start,
        args=jnp.exp(log_rates),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
    )
    return solution.ys


def loss(log_rates, observed):
    return jnp.sum((solve(log_rates) - observed) ** 2) / (2 * noise**2)


exact = solve(jnp.log(true_rates))
observed = exact + noise * jax.random.normal(jax.random.key(0), exact.shape)

# %% [markdown]
# ## The Hessian
#
# The default adjoint of diffrax defines a reverse pass of its own, and JAX cannot
# differentiate such a function forwards. The Hessian needs that.

# %%
guess = jnp.log(jnp.array([0.8, 0.3, 0.15, 0.6]))
try:
    jax.hessian(loss)(guess, observed)
except TypeError as error:
    print("jax.hessian raises:", str(error).splitlines()[0])

# %% [markdown]
# fomoh_jax carries all four directions forwards through the same solve. Value and
# gradient come from the same pass.

# %%
model = jax.jit(fomoh_jax.value_grad_and_hessian(loss))
print(np.array2string(np.asarray(model(guess, observed).hessian), precision=1))

# %% [markdown]
# ## Newton's method
#
# `fomoh_kd` with as many directions as parameters minimises the full quadratic model,
# here within a trust region. One forward pass per step gives the model.

# %%
tx = fomoh_jax.fomoh_kd(k=4, solver=solvers.trust_region(0.5))


@jax.jit
def step(log_rates, state, observed):
    updates, state = tx.update(None, state, log_rates, value_fn=loss, observed=observed)
    return optax.apply_updates(log_rates, updates), state


fit, state = guess, tx.init(guess)
for number in range(9):
    value, gradient, hessian = model(fit, observed)
    print(
        f"after {number} steps: loss {value:8.4f}, "
        f"norm of the gradient {jnp.linalg.norm(gradient):.1e}"
    )
    fit, state = step(fit, state, observed)

# %% [markdown]
# ## Standard errors
#
# Near its minimum the loss is quadratic, and the likelihood is Gaussian. Its covariance
# is the inverse of the Hessian. This is the Laplace approximation. The square roots of
# the diagonal are the standard errors of the logarithms, that is, relative errors.

# %%
covariance = jnp.linalg.inv(model(fit, observed).hessian)
standard_errors = jnp.sqrt(jnp.diag(covariance))
for name, true, log_rate, error in zip(names, true_rates, fit, standard_errors):
    rate = jnp.exp(log_rate)
    print(f"{name:20s} {rate:.4f} ± {rate * error:.4f}, true {true:.4f}")

# %% [markdown]
# We can check them by a parametric bootstrap: we make 200 sets of data like ours, with
# new noise around the fitted curves, and fit each by six of the steps from above.

# %%
curves = solve(fit)


def refit(key):
    data = curves + noise * jax.random.normal(key, curves.shape)
    log_rates, state = fit, tx.init(fit)
    for _ in range(6):
        log_rates, state = step(log_rates, state, data)
    return log_rates


refits = jnp.stack([refit(key) for key in jax.random.split(jax.random.key(1), 200)])
spread = jnp.std(refits, axis=0)
for name, error, deviation in zip(names, standard_errors, spread):
    print(f"{name:20s} Laplace {error:.4f}, bootstrap {deviation:.4f}")

# %% [markdown]
# According to the Laplace approximation, the ellipse contains two of the rates with a
# probability of 95 %. The crosses are the fits of the bootstrap.

# %%
pair = np.array([0, 3])
radius = jnp.sqrt(-2 * jnp.log(0.05))  # of the 95 % region in two dimensions
angles = jnp.linspace(0, 2 * jnp.pi, 200)
circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
factor = jnp.linalg.cholesky(covariance[np.ix_(pair, pair)])
ellipse = jnp.exp(fit[pair, None] + radius * factor @ circle)
scaled = jnp.linalg.solve(factor, (refits - fit)[:, pair].T)
inside = int(jnp.sum(jnp.linalg.norm(scaled, axis=0) < radius))
print(f"{inside} of {len(refits)} fits are inside the ellipse")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5))
for column, (name, style, marker) in enumerate(
    [("prey", "-", "o"), ("predators", "--", "s")]
):
    left.plot(times, jnp.exp(curves[:, column]), style, color="black", label=name)
    left.plot(times, jnp.exp(observed[:, column]), marker, color="grey", ms=4)
left.set(xlabel="time", ylabel="population")
left.legend()
right.plot(*ellipse, color="black")
right.plot(*jnp.exp(refits[:, pair]).T, "x", color="grey", ms=4)
right.plot(*true_rates[pair], "k*", ms=12, label="true rates")
right.set(xlabel=names[0], ylabel=names[3])
right.legend()
figure.tight_layout()
