"""Temporary memory against the number of layers, beside reverse mode."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import fomoh_jax
from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import OURS, Contender, Row

# What a report calls the contenders, since k differs.
TITLES = {
    OURS: "ours, k=2",
    "nested jvp": "nested jvp, k=2",
    "fomoh_jax, k=1": "ours, k=1",
    "gradient": "gradient",
    "gradient, checkpointed": "gradient, checkpointed",
}


def rows(quick: bool, dtype: jnp.dtype) -> Iterator[Row]:
    """The same network, written out and scanned, in each of the depths."""
    width, batch = (16, 32) if quick else (256, 1024)
    for name, scanned in {"unrolled": False, "scanned": True}.items():
        for layers in (2, 4) if quick else (4, 16, 64, 256):
            make = functools.partial(contenders, layers, width, batch, dtype, scanned)
            yield Row(name, {"layers": layers}, make, timed=False)


def contenders(
    layers: int, width: int, batch: int, dtype: jnp.dtype, scanned: bool
) -> dict[str, Contender]:
    """Only nested ``jvp`` gives the same numbers as ours."""
    make = functools.partial(
        workloads.deep, layers, width, batch, dtype, scanned=scanned
    )
    loss, params, data = make()
    checkpointed = make(wrap=jax.checkpoint).loss
    two = (params, workloads.directions(params, 2), *data)
    one = (params, workloads.directions(params, 1), *data)
    return {
        OURS: Contender(ways.ours(loss), two),
        "nested jvp": Contender(ways.nested(loss), two),
        "fomoh_jax, k=1": Contender(_directional(loss), one, agrees=False),
        "gradient": Contender(jax.grad(loss), (params, *data), agrees=False),
        "gradient, checkpointed": Contender(
            jax.grad(checkpointed), (params, *data), agrees=False
        ),
    }


def _directional(loss):
    def model(params, directions, x):
        return fomoh_jax.directional_curvature(loss, (params, x), (directions, None))

    return model
