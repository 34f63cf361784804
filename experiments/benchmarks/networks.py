"""Quadratic models of networks of several kinds, by each plan."""

import functools
from collections.abc import Callable, Iterator

import jax

from experiments.benchmarks import ways, workloads
from experiments.benchmarks.measurement import ADJOINT, OURS, Contender, Contenders, Row
from experiments.benchmarks.recurrent import recurrent_network
from experiments.benchmarks.resnet import residual_network
from fomoh_jax import plans

AUTO = "fomoh_jax, auto"
WIDTHS = (384,) * 5 + (10,)
MAKERS: dict[str, Callable[[int], workloads.Workload]] = {
    "gelu MLP 4×384": lambda batch: workloads.mlp(WIDTHS, batch, jax.nn.gelu),
    "ResNet, batch norm": functools.partial(residual_network, "batch", 32),
    "ResNet, group norm": functools.partial(residual_network, "group", 32),
    "LSTM": functools.partial(recurrent_network, "LSTM", 128, 32),
    "GRU": functools.partial(recurrent_network, "GRU", 128, 32),
    **{
        name: functools.partial(workloads.named, name)
        for name in ("MLP 5×256", "CNN", "transformer")
    },
}
# The batch of each, and the values of k.
SIZES = {
    "gelu MLP 4×384": (256, (1, 2, 8, 20)),
    "MLP 5×256": (64, (3, 8)),
    "CNN": (32, (2, 8)),
    "ResNet, batch norm": (8, (1, 3, 5)),
    "ResNet, group norm": (8, (2, 5)),
    "transformer": (2, (3, 8)),
    "LSTM": (32, (1, 3, 8)),
    "GRU": (32, (2, 20)),
}
QUICK = {"GRU": (2, (2,))}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """A row for each network and k."""
    for name, (batch, ks) in (QUICK if quick else SIZES).items():
        make = functools.cache(functools.partial(MAKERS[name], scale * batch))
        for k in ks:
            yield Row(name, {"k": k}, functools.partial(contenders, make, k))


def contenders(make: workloads.Make, k: int) -> Contenders:
    """Ways to the quadratic model, all on the same directions."""
    loss, args = workloads.with_directions(make(), k)
    functions = {
        OURS: ways.ours(loss),
        ADJOINT: ways.ours(loss, plan=plans.adjoint()),
        AUTO: ways.ours(loss, plan="auto"),
        "nested jvp": ways.nested(loss),
        "forward over reverse": ways.forward_over_reverse(loss),
    }
    return {name: Contender(function, args) for name, function in functions.items()}
