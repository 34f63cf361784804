"""The quadratic model of a loss on k directions, beside other ways to it."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import ADJOINT, OURS, Contender, Row
from fomoh_jax import plans

NESTED = {"nested jvp": ("nested jvp, slopes shared", "nested jvp, pair by pair")}


def rows(quick: bool, dtype: jnp.dtype) -> Iterator[Row]:
    """One for each workload and k."""
    for name, (make, ks) in _workloads(quick, dtype).items():
        make = functools.cache(make)  # the rows of a workload share its arrays
        for k in ks:
            yield Row(name, {"k": k}, functools.partial(contenders, make, k), NESTED)


def contenders(make: Callable, k: int) -> dict[str, Contender]:
    """All on the same directions."""
    loss, params, data = make()
    args = (params, workloads.directions(params, k), *data)
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


def _workloads(quick, dtype):
    mlp, digits, transformer = workloads.mlp, workloads.digits, workloads.transformer
    if quick:
        return {
            "MLP tanh": (lambda: mlp((784, 100, 10), 64, jnp.tanh, dtype), (1, 3)),
            "CNN": (lambda: digits("cnn", 4, dtype), (1,)),
            "transformer": (lambda: transformer(1, 16, 8, 2, dtype), (2,)),
        }
    wide, deep = (784, 100, 10), (256,) * 6 + (10,)
    return {
        "MLP relu": (lambda: mlp(wide, 2048, jax.nn.relu, dtype), (1, 2, 5, 10, 20)),
        "MLP tanh": (lambda: mlp(wide, 2048, jnp.tanh, dtype), (1, 2, 5, 10, 20)),
        "MLP 5×256": (lambda: mlp(deep, 256, jnp.tanh, dtype), (1, 2, 5, 10, 20)),
        "CNN": (lambda: digits("cnn", 256, dtype), (1, 2, 3, 5)),
        "transformer": (lambda: transformer(4, 128, 128, 8, dtype), (1, 2, 5, 10)),
    }
