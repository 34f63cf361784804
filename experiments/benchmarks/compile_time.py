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

from experiments.benchmarks.ways import nested, ours

WIDTH, HEADS, LENGTH, BATCH = 32, 4, 8, 2


def layer(x, p):
    """Causal attention and a gelu network, each behind a layer norm."""
    q, k, v = jnp.einsum("btd,cdhe->cbthe", _normed(x, p["scale1"]), p["qkv"])
    scores = jnp.einsum("bthe,bshe->bhts", q, k) / jnp.sqrt(float(q.shape[-1]))
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    mixed = jnp.einsum("bhts,bshe->bthe", weights, v).reshape(x.shape)
    x = x + mixed @ p["out"]
    return (
        x + jax.nn.gelu(_normed(x, p["scale2"]) @ p["wide"] + p["bias"]) @ p["narrow"]
    )


def _normed(x, scale):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) * scale


def parameters(key) -> dict[str, jax.Array]:
    shapes = {
        "qkv": (3, WIDTH, HEADS, WIDTH // HEADS),
        "out": (WIDTH, WIDTH),
        "wide": (WIDTH, 4 * WIDTH),
        "bias": (4 * WIDTH,),
        "narrow": (4 * WIDTH, WIDTH),
    }
    keys = dict(zip(shapes, jax.random.split(key, len(shapes))))
    drawn = {n: 0.1 * jax.random.normal(keys[n], shape) for n, shape in shapes.items()}
    return {**drawn, "scale1": jnp.ones(WIDTH), "scale2": jnp.ones(WIDTH)}


def networks(layers: int) -> dict[str, tuple[Callable, Any]]:
    """For each way to write it, the loss and its parameters."""
    each = [parameters(key) for key in jax.random.split(jax.random.key(0), layers)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def written_out(params, x, layer=layer):
        for p in params:
            x = layer(x, p)
        return jnp.mean(x**2)

    def scanned(params, x):
        return jnp.mean(lax.scan(lambda x, p: (layer(x, p), None), x, params)[0] ** 2)

    return {
        "unrolled": (written_out, each),
        "jitted": (lambda params, x: written_out(params, x, jax.jit(layer)), each),
        "scanned": (scanned, stacked),
    }


def lowered(transform: Callable, loss: Callable, params: Any, k: int):
    directions = jax.tree.map(lambda p: jnp.ones((k, *p.shape)), params)
    x = jnp.ones((BATCH, LENGTH, WIDTH))
    return jax.jit(transform(loss)).lower(params, directions, x)


def seconds(transform: Callable, loss: Callable, params: Any, k: int) -> float:
    """To trace, lower and compile, from nothing."""
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
    """Times each is compiled; medians are printed."""


def main(config: Config) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"jax {jax.__version__}, {config.layers} layers, k = {config.k}")
    for name, (loss, params) in networks(config.layers).items():
        pairs = [
            [seconds(transform, loss, params, config.k) for transform in (ours, nested)]
            for _ in range(config.repeats)
        ]
        mine, theirs = (statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(a / b for a, b in pairs)
        print(
            f"{name:9s} ours {mine:6.2f} s, nested jvp {theirs:6.2f} s, "
            f"ours ÷ nested {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Config))
