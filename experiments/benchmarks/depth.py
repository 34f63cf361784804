"""Temporary memory against the number of layers, beside reverse mode."""

import functools
from collections.abc import Iterator

import jax

import fomoh_jax
from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import OURS, Contender, Contenders, Row

# Names of the contenders in a report, since k differs.
TITLES = {
    OURS: "ours, k=2",
    "nested jvp": "nested jvp, k=2",
    "fomoh_jax, k=1": "ours, k=1",
    "gradient": "gradient",
    "gradient, checkpointed": "gradient, checkpointed",
}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """The same network, written out and scanned, in each of the depths."""
    width, batch = (16, 32) if quick else (256, 1024)
    for name, scanned in {"unrolled": False, "scanned": True}.items():
        for layers in (2, 4) if quick else (4, 16, 64, 256):
            make = functools.partial(contenders, layers, width, scale * batch, scanned)
            yield Row(name, {"layers": layers}, make, timed=False)


def contenders(layers: int, width: int, batch: int, scanned: bool) -> Contenders:
    """Only nested ``jvp`` gives the same numbers as ours."""
    make = functools.partial(workloads.deep, layers, width, batch, scanned)
    loss, params, data = make()
    checkpointed = make(wrap=jax.checkpoint).loss
    two, one = (workloads.with_directions(make(), k)[1] for k in (2, 1))
    slope = lambda params, v, x: fomoh_jax.directional_curvature(
        loss, (params, x), (v, None)
    )
    alone = functools.partial(Contender, agrees=False)
    return {
        OURS: Contender(ways.ours(loss), two),
        "nested jvp": Contender(ways.nested(loss), two),
        "fomoh_jax, k=1": alone(slope, one),
        "gradient": alone(jax.grad(loss), (params, *data)),
        "gradient, checkpointed": alone(jax.grad(checkpointed), (params, *data)),
    }
