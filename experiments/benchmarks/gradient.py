"""A forward gradient by perturbed activations, beside ``jax.grad``."""

import functools
from collections.abc import Iterator

import jax

import fomoh_jax
from experiments.benchmarks import workloads
from experiments.benchmarks.measurement import OURS, Contender, Row

BATCHES = {"MLP relu": 1024, "MLP 5×256": 1024, "CNN": 256, "transformer": 8}
# The gradient within a loop over steps, where XLA's CPU backend is slow at transposed
# convolutions.
IN_A_SCAN = "CNN in a scan"
OPTIONS = {OURS: {}, "2 blocks": {"blocks": 2}, "4 probes": {"probes": 4}}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """A row for each workload."""
    for name, batch in ({"MLP relu": 64} if quick else BATCHES).items():
        make = functools.partial(workloads.named, name, scale * batch)
        yield Row(name, {"B": scale * batch}, functools.partial(contenders, make))
    if not quick:
        batch = scale * BATCHES["CNN"]
        make = functools.partial(workloads.named, "CNN", batch)
        scanned = functools.partial(contenders, make, in_a_scan=True)
        yield Row(IN_A_SCAN, {"B": batch}, scanned)


def contenders(make: workloads.Make, in_a_scan: bool = False) -> dict[str, Contender]:
    """The ways to a gradient; ours are estimates, so that none are compared."""
    loss, params, data = make()

    def loss_of_one(params, example):
        return loss(params, *(x[None] for x in example))

    def once(way):
        def scanned(params, data, *key):
            step = lambda carry, part: (carry, way(params, part, *key))
            return jax.lax.scan(step, (), jax.tree.map(lambda x: x[None], data))[1]

        return scanned if in_a_scan else way

    ways = {
        name: once(fomoh_jax.forward_value_and_grad(loss_of_one, **options))
        for name, options in OPTIONS.items()
    }
    ours = {
        name: Contender(way, (params, data, jax.random.key(0)), agrees=False)
        for name, way in ways.items()
    }
    reverse = once(jax.value_and_grad(lambda params, data: loss(params, *data)))
    return ours | {"jax.grad": Contender(reverse, (params, data), agrees=False)}
