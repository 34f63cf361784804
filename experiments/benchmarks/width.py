"""Time and temporary memory against k, bounded by ``plans.forward(chunk_size)``."""

import functools
from collections.abc import Callable, Iterator

import jax.numpy as jnp

from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import OURS, Contender, Row
from fomoh_jax import plans


def rows(quick: bool, dtype: jnp.dtype) -> Iterator[Row]:
    """One for each workload and k."""
    mlp = workloads.mlp
    batches = (16, 8) if quick else (512, 64)
    made = {
        "MLP tanh": lambda: mlp((784, 100, 10), batches[0], jnp.tanh, dtype),
        "MLP 5×256": lambda: mlp((256,) * 6 + (10,), batches[1], jnp.tanh, dtype),
    }
    for name, make in list(made.items())[: 1 if quick else None]:
        for k in (4,) if quick else (8, 16, 32, 64):
            chunks = (2,) if quick else (4, 8, 16)
            yield Row(name, {"k": k}, functools.partial(contenders, make, k, chunks))


def contenders(make: Callable, k: int, chunks: tuple) -> dict[str, Contender]:
    """Ours whole and in chunks smaller than k, and nested ``jvp``."""
    loss, params, data = make()
    args = (params, workloads.directions(params, k), *data)
    chunked = {
        f"fomoh_jax, chunks of {chunk}": ways.ours(loss, plans.forward(chunk))
        for chunk in chunks
        if chunk < k
    }
    functions = {OURS: ways.ours(loss), **chunked, "nested jvp": ways.nested(loss)}
    return {name: Contender(function, args) for name, function in functions.items()}
