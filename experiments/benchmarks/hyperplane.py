"""The quadratic model of a loss on k directions, beside other ways to it."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp

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


def rows(quick: bool, dtype: jnp.dtype) -> Iterator[Row]:
    """One for each workload and k."""
    for name, (batch, ks) in (QUICK if quick else WORKLOADS).items():
        # The rows of a workload share its arrays.
        make = functools.cache(functools.partial(workloads.named, name, batch, dtype))
        for k in ks:
            yield Row(name, {"k": k}, functools.partial(contenders, make, k), NESTED)


def contenders(make: workloads.Make, k: int) -> dict[str, Contender]:
    """All on the same directions."""
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
