"""A predator-prey model with a small network in it, through an adaptive solver.

The solver is a ``while_loop``, which no reverse pass can take. Predators of the truth
are sated (Holling's second type); the student has the rates of Lotka and Volterra, at
wrong values, and a network of one hidden layer that may add anything to them. An
example is a pair of populations at time zero and noisy observations of what became of
them.
"""

import jax
import jax.numpy as jnp

from experiments.methods import mean_loss
from experiments.ode import TRUTH, lotka_volterra, solve
from experiments.sceptic.contenders import K
from experiments.sceptic.problem import Problem

TIMES = jnp.linspace(0, 5, 11)[1:]
NOISE = 0.05  # standard deviation of the observed log-populations
SATED = 0.05  # per prey
HIDDEN, BATCH, TRAIN, HELD_OUT, TOLERANCE = 8, 16, 512, 128, 1e-3


def truth(y: jax.Array) -> jax.Array:
    """The slopes of the log-populations, of predators that are sated."""
    alpha, beta, delta, gamma = TRUTH.tolist()
    prey, predators = jnp.exp(y)
    eaten = 1 / (1 + SATED * prey)
    return jnp.stack([alpha - beta * predators * eaten, delta * prey * eaten - gamma])


def trajectory(field, start: jax.Array) -> jax.Array:
    """The log-populations at the times, ``[m, 2]``."""
    return solve(field, start, TIMES, tolerance=TOLERANCE)


def field_of(params: dict[str, jax.Array]):
    """The student's slopes of the log-populations."""

    def field(y):
        hidden = jnp.tanh(y @ params["in"] + params["bias"])
        known = lotka_volterra(jnp.exp(params["rates"]), y)
        return known + hidden @ params["out"]

    return field


def init(seed: int) -> dict[str, jax.Array]:
    """Rates that are off by a third or so, and a network that adds nothing."""
    of_rates, of_in = jax.random.split(jax.random.key(seed))
    off = 0.3 * jax.random.rademacher(of_rates, (4,), jnp.float32)
    return {
        "rates": jnp.log(jnp.asarray(TRUTH, jnp.float32)) + off,
        "in": jax.random.normal(of_in, (2, HIDDEN)) / 2,
        "bias": jnp.zeros(HIDDEN),
        "out": jnp.zeros((HIDDEN, 2)),
    }


def loss_of_one(params, example) -> jax.Array:
    """Mean squared error of the log-populations."""
    start, observed = example
    error = trajectory(field_of(params), start) - observed
    return jnp.mean(error**2)


def observe(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Starts ``[n, 2]`` and noisy observations ``[n, m, 2]``."""
    of_starts, of_noise = jax.random.split(key)
    centre = jnp.log(jnp.array([10.0, 3.0]))
    starts = centre + 0.4 * jax.random.normal(of_starts, (count, 2))
    exact = jax.vmap(lambda start: trajectory(truth, start))(starts)
    return starts, exact + NOISE * jax.random.normal(of_noise, exact.shape)


def make() -> Problem:
    """The problem, with 512 trajectories to train, 128 to validate and 128 to test."""
    keys = jax.random.split(jax.random.key(7), 3)
    made = jax.jit(observe, static_argnums=1)
    starts, observed = made(keys[0], TRAIN)
    splits = {
        "validation": made(keys[1], HELD_OUT),
        "test": made(keys[2], HELD_OUT),
    }

    def sample(key):
        chosen = jax.random.randint(key, (BATCH,), 0, TRAIN)
        return starts[chosen], observed[chosen]

    evaluate = jax.jit(lambda params, data: mean_loss(loss_of_one, data)(params))
    return Problem(
        "ODE through a while_loop",
        init=init,
        loss_of_one=loss_of_one,
        rematerialised=None,
        sample=sample,
        evaluate=lambda params, split: {"loss": float(evaluate(params, splits[split]))},
        in_tail=None,
        passes=40_000,
        is_reversible=False,
        rates={
            "Adam, a tangent a parameter": 1e-2,
            "estimate, 2 blocks, Adam": 3e-3,
            "HiZOO": 3e-3,
            "EGGROLL": 1e-2,
            "FoMoH": 0.1,
            f"FoMoH-KD({K})": 0.01,
            f"multi-tangent({K})": 0.01,
        },
    )
