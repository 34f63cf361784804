"""Time and temporary memory against k, bounded by ``plans.forward(chunk_size)``."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp

from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import OURS, Contender, Row
from fomoh_jax import plans


def rows(quick: bool, dtype: jnp.dtype) -> Iterator[Row]:
    """One for each workload and k."""
    batches = {"MLP tanh": 16} if quick else {"MLP tanh": 512, "MLP 5×256": 64}
    for name, batch in batches.items():
        make = functools.partial(workloads.named, name, batch, dtype)
        for k in (4,) if quick else (8, 16, 32, 64):
            chunks = (2,) if quick else (4, 8, 16)
            yield Row(name, {"k": k}, functools.partial(contenders, make, k, chunks))


def contenders(make: workloads.Make, k: int, chunks: tuple) -> dict[str, Contender]:
    """Ours whole and in chunks smaller than k, and nested ``jvp``."""
    loss, args = workloads.with_directions(make(), k)
    functions = {
        OURS: ways.ours(loss),
        **{
            f"fomoh_jax, chunks of {chunk}": ways.ours(loss, plans.forward(chunk))
            for chunk in chunks
            if chunk < k
        },
        "nested jvp": ways.nested(loss),
    }
    return {name: Contender(function, args) for name, function in functions.items()}
