"""Seconds to trace and compile the quadratic model of a transformer, beside nested jvp.

    python -m experiments.benchmarks.compile_time --layers 24 --k 4

Three ways to write the same network: every layer written out, one jitted layer called
many times, and a scan over the layers.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax import lax

from experiments import study
from experiments.benchmarks.ways import nested, ours
from experiments.benchmarks.workloads import Block

X = jax.ShapeDtypeStruct((2, 8, 32), jnp.float32)  # sequences, tokens, width


def networks(layers: int) -> dict[str, tuple[Callable, Any]]:
    """The loss and its parameters, for each way to write the network."""
    block, x = Block(X.shape[-1]), jnp.ones(X.shape, X.dtype)
    keys = jax.random.split(jax.random.key(0), layers)
    stacked = jax.vmap(lambda key: block.init(key, x))(keys)
    each = [jax.tree.map(lambda p: p[i], stacked) for i in range(layers)]

    def written_out(params, x, layer=block.apply):
        for p in params:
            x = layer(p, x)
        return jnp.mean(x**2)

    def scanned(params, x):
        x, _ = lax.scan(lambda x, p: (block.apply(p, x), None), x, params)
        return jnp.mean(x**2)

    jitted = lambda params, x: written_out(params, x, jax.jit(block.apply))
    return {
        "unrolled": (written_out, each),
        "jitted": (jitted, each),
        "scanned": (scanned, stacked),
    }


def lowered(transform: Callable, loss: Callable, params: Any, k: int):
    directions = jax.tree.map(lambda p: jnp.ones((k, *p.shape), p.dtype), params)
    return jax.jit(transform(loss)).lower(params, directions, X)


def seconds(transform: Callable, loss: Callable, params: Any, k: int) -> float:
    """The time to trace, lower and compile without any cache."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered(transform, loss, params, k).compile()
    return time.perf_counter() - start


@dataclasses.dataclass
class Config:
    layers: int = 24
    """Layers of the transformer."""
    k: int = 4
    """Directions."""
    repeats: int = 3
    """How often each is compiled; medians are printed."""


def main(config: Config) -> None:
    study.at_least(1, config, "layers", "k", "repeats")
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"jax {jax.__version__}, {config.layers} layers, k = {config.k}")
    rows = []
    for name, network in study.progress(networks(config.layers), "network"):
        ways = [(ours, nested)] * config.repeats
        pairs = [[seconds(way, *network, config.k) for way in both] for both in ways]
        mine, theirs = map(statistics.median, zip(*pairs))
        ratio = statistics.median(a / b for a, b in pairs)
        times = {"ours [s]": f"{mine:.2f}", "nested jvp [s]": f"{theirs:.2f}"}
        rows.append({"network": name, **times, "ours ÷ nested": f"{ratio:.2f}"})
    print(study.table(rows))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
