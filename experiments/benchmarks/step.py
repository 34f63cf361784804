"""A whole step of FoMoH-KD, beside one of SGD and of Adam with backpropagation."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

import fomoh_jax
from experiments.benchmarks import workloads
from experiments.benchmarks.measurement import OURS, Contender, Row


def rows(quick: bool, dtype: jnp.dtype) -> Iterator[Row]:
    """One for each workload and k; the rivals are the same for every k."""
    digits, mlp = workloads.digits, functools.partial(workloads.mlp, (784, 100, 10))
    batches = (64, 4) if quick else (2048, 256)
    made = {
        "softmax regression": lambda: digits("softmax", batches[0], dtype),
        "MLP tanh": lambda: mlp(batches[0], jnp.tanh, dtype),
        "CNN": lambda: digits("cnn", batches[1], dtype),
    }
    for name, make in list(made.items())[: 1 if quick else None]:
        for k in (3,) if quick else (1, 5, 10):
            yield Row(name, {"k": k}, functools.partial(contenders, make, k))


def contenders(make: Callable, k: int) -> dict[str, Contender]:
    """They take different steps, so that there is nothing to compare."""
    workload = make()
    return {
        OURS: _forward(workload, fomoh_jax.fomoh_kd(k, learning_rate=0.1)),
        "SGD": _backward(workload, optax.sgd(0.1)),
        "Adam": _backward(workload, optax.adam(1e-3)),
    }


def _forward(
    workload: workloads.Workload, tx: optax.GradientTransformationExtraArgs
) -> Contender:
    loss, params, data = workload

    def step(params, state, inputs, labels):
        updates, state = tx.update(
            None, state, params, value_fn=loss, inputs=inputs, labels=labels
        )
        return optax.apply_updates(params, updates), state

    # As behind a first step: before it there is no reduction to report but NaN.
    state = optax.tree.set(tx.init(params), value=jnp.zeros(()))
    return Contender(step, (params, state, *data), agrees=False)


def _backward(
    workload: workloads.Workload, tx: optax.GradientTransformation
) -> Contender:
    loss, params, data = workload

    def step(params, state, inputs, labels):
        updates, state = tx.update(jax.grad(loss)(params, inputs, labels), state)
        return optax.apply_updates(params, updates), state

    return Contender(step, (params, tx.init(params), *data), agrees=False)
