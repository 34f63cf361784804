"""A linear student of a linear teacher, whose Hessian has a known spectrum.

``y = W x`` with ``m`` outputs, and inputs whose covariance has the eigenvalues
``exp(-i / r)`` in a random basis. The Hessian is that covariance for each row of ``W``:
``D = m n`` parameters, of which about ``m r`` matter. That is its effective rank, the
trace over the largest eigenvalue. The loss is 1 at the start, and its Hessian has the
trace 2, whatever ``n`` and ``r`` are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sceptic.contenders import K
from experiments.sceptic.problem import Problem

OUTPUTS, BATCH, EXAMPLES = 16, 64, 2048
TARGET = 0.1  # a run ends there
# Inputs and the effective rank of their covariance: either grows while the other stays.
SIZES = tuple((n, 16) for n in (64, 256, 1024, 4096)) + tuple(
    (1024, r) for r in (4, 64, 256)
)


def eigenvalues(inputs: int, rank: int) -> np.ndarray:
    """The eigenvalues of the inputs' covariance, whose sum is 1."""
    decaying = np.exp(-np.arange(inputs) / rank)
    return decaying / decaying.sum()


def make(inputs: int, rank: int) -> Problem:
    """The problem, with a fixed pool of inputs and the exact loss to evaluate."""
    generator = np.random.default_rng(0)
    values = eigenvalues(inputs, rank)
    basis, _ = np.linalg.qr(generator.standard_normal((inputs, inputs)))
    pool = generator.standard_normal((EXAMPLES, inputs)) * np.sqrt(values) @ basis.T
    wanted = np.sign(generator.standard_normal((OUTPUTS, inputs))) @ basis.T
    basis, pool, wanted, values = (
        jnp.asarray(x, jnp.float32) for x in (basis, pool, wanted, values)
    )

    def loss_of_one(params, x):
        return jnp.mean(((params["w"] - wanted) @ x) ** 2)

    @jax.jit
    def expected(params):
        along = (params["w"] - wanted) @ basis
        return jnp.mean(along**2 @ values)

    def sample(key):
        return pool[jax.random.randint(key, (BATCH,), 0, EXAMPLES)]

    largest = 2 * float(values[0]) / OUTPUTS  # eigenvalue of the Hessian
    return Problem(
        f"teacher, {inputs} inputs of effective rank {rank}",
        init=lambda seed: {"w": jnp.zeros((OUTPUTS, inputs))},
        loss_of_one=loss_of_one,
        rematerialised=None,
        sample=sample,
        evaluate=lambda params, split: {"loss": float(expected(params))},
        in_tail=None,
        passes=20_000,
        target=TARGET,
        rates={
            "SGD": 0.3 / largest,
            **dict.fromkeys(("FGD", "MeZO", "LOZO"), 0.1),
            "HiZOO": 1.0,
            "EGGROLL": 0.03,
            "Adam": 0.03,
            f"multi-tangent({K})": 0.1 * OUTPUTS * inputs,
        },
    )
