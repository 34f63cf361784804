"""The quadratic model of a loss on k directions, whole and in chunks."""

import functools
from collections.abc import Iterator

from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import ADJOINT, OURS, Contender, Row
from fomoh_jax import plans

NESTED = {"nested jvp": ("nested jvp, slopes shared", "nested jvp, pair by pair")}
# The batch of each workload, and the values of k.
WORKLOADS = {
    "MLP relu": (2048, (1, 2, 5, 10, 20)),
    "MLP tanh": (2048, (1, 2, 5, 10, 20)),
    "MLP 5×256": (256, (1, 2, 5, 10, 20)),
    "CNN": (256, (1, 2, 3, 5)),
    "transformer": (8, (1, 2, 5, 10)),
}
QUICK = {"MLP tanh": (64, (1, 3)), "CNN": (4, (1,)), "transformer": (1, (2,))}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """A row for each workload and k, with ``scale`` times the batch."""
    for name, (batch, ks) in (QUICK if quick else WORKLOADS).items():
        # The rows of a workload share its arrays.
        make = functools.cache(functools.partial(workloads.named, name, scale * batch))
        for k in ks:
            yield Row(name, {"k": k}, functools.partial(contenders, make, k), NESTED)


def contenders(make: workloads.Make, k: int) -> dict[str, Contender]:
    """Ways to the quadratic model, all on the same directions."""
    loss, args = workloads.with_directions(make(), k)
    shared, pair_by_pair = NESTED["nested jvp"]
    functions = {
        OURS: ways.ours(loss),
        ADJOINT: ways.ours(loss, plan=plans.adjoint()),
        shared: ways.nested(loss),
        pair_by_pair: ways.nested_pairs(loss),
        "forward over reverse": ways.forward_over_reverse(loss),
    }
    if k == 1:
        functions["jet"] = ways.taylor(loss)
    return {name: Contender(function, args) for name, function in functions.items()}


def chunked_rows(quick: bool, scale: int) -> Iterator[Row]:
    """Rows with many directions, in chunks by ``plans.forward(chunk_size)``."""
    batches = {"MLP tanh": 16} if quick else {"MLP tanh": 512, "MLP 5×256": 64}
    for name, batch in batches.items():
        make = functools.partial(workloads.named, name, scale * batch)
        for k in (4,) if quick else (8, 16, 32, 64):
            sizes = (2,) if quick else (4, 8, 16)
            yield Row(name, {"k": k}, functools.partial(chunked, make, k, sizes))


def chunked(make: workloads.Make, k: int, sizes: tuple) -> dict[str, Contender]:
    """Our model, whole and in chunks smaller than k, and nested ``jvp``."""
    loss, args = workloads.with_directions(make(), k)
    functions = {OURS: ways.ours(loss)}
    for size in filter(k.__gt__, sizes):
        functions[f"fomoh_jax, chunks of {size}"] = ways.ours(loss, plans.forward(size))
    functions["nested jvp"] = ways.nested(loss)
    return {name: Contender(function, args) for name, function in functions.items()}
