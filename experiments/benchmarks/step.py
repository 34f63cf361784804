"""A whole step of FoMoH-KD, beside one of SGD and of Adam with backpropagation."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
import optax

import fomoh_jax
from experiments.benchmarks import workloads
from experiments.benchmarks.measurement import OURS, Contender, Row
from experiments.minimisation import exact_gradient, make_step

BATCHES = {"softmax regression": 2048, "MLP tanh": 2048, "CNN": 256}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """A row for each workload and k; the rivals are the same for every k."""
    batches = {"softmax regression": 64} if quick else BATCHES
    for name, batch in batches.items():
        make = functools.partial(workloads.named, name, scale * batch)
        for k in (3,) if quick else (1, 5, 10):
            yield Row(name, {"k": k}, functools.partial(contenders, make, k))


def contenders(make: workloads.Make, k: int) -> dict[str, Contender]:
    """They take different steps, so that there is nothing to compare."""
    loss, params, data = make()

    methods = {
        OURS: fomoh_jax.fomoh_kd(k, learning_rate=0.1),
        "SGD": optax.chain(exact_gradient(), optax.sgd(0.1)),
        "Adam": optax.chain(exact_gradient(), optax.adam(1e-3)),
    }
    states = {name: tx.init(params) for name, tx in methods.items()}
    # The state is as after a first step, before which the reduction is NaN.
    states[OURS] = optax.tree.set(states[OURS], value=jnp.zeros(()))
    return {
        name: Contender(make_step(loss, tx), (params, states[name], *data), False)
        for name, tx in methods.items()
    }
