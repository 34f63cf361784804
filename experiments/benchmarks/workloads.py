"""Losses to differentiate, with parameters and data of the right shape."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.models import MODELS, Block, cross_entropy


class Workload(NamedTuple):
    """A function of parameters and data, and its arguments.

    Attributes:
      loss: ``loss(params, *data)``, a scalar.
      params: a pytree of arrays.
      data: arrays that are held fixed. They are arguments and not constants, so that
        the compiler cannot fold them.
    """

    loss: Callable
    params: Any
    data: tuple


Make = Callable[[], Workload]


def named(name: str, batch: int) -> Workload:
    """The workloads of several tables, at a batch size."""
    wide, deep = (784, 100, 10), (256,) * 6 + (10,)
    makers = {
        "softmax regression": lambda: digits("softmax", batch),
        "MLP relu": lambda: mlp(wide, batch, jax.nn.relu),
        "MLP tanh": lambda: mlp(wide, batch, jnp.tanh),
        "MLP 5×256": lambda: mlp(deep, batch, jnp.tanh),
        "CNN": lambda: digits("cnn", batch),
        "transformer": lambda: transformer(4, 128, 128, batch),
    }
    return makers[name]()


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers by numpy, which has nothing to compile."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """A tree on the device, with every floating-point leaf in ``dtype``."""
    inexact = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
    convert = lambda x: jnp.asarray(x, dtype if inexact(x) else x.dtype)
    return jax.tree.map(convert, tree)


def directions(params: Any, k: int) -> Any:
    """``k`` Gaussian directions: like the parameters, with a leading axis."""
    leaves, structure = jax.tree.flatten(params)
    drawn = [normal(100 + i, k, *leaf.shape) for i, leaf in enumerate(leaves)]
    return structure.unflatten([cast(v, leaf.dtype) for v, leaf in zip(drawn, leaves)])


def with_directions(workload: Workload, k: int) -> tuple[Callable, tuple]:
    """The loss, and the arguments of a way to its quadratic model."""
    loss, params, data = workload
    return loss, (params, directions(params, k), *data)


def dense_layers(widths: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights that keep the variance, and zero biases."""
    return [
        (normal(seed, a, b) / np.float32(a**0.5), np.zeros(b, np.float32))
        for seed, (a, b) in enumerate(itertools.pairwise(widths))
    ]


def apply_dense(layers: Any, x: jax.Array, activation: Callable) -> jax.Array:
    """The network of dense layers, linear in its last one."""
    *hidden, (weight, bias) = layers
    for w, b in hidden:
        x = activation(x @ w + b)
    return x @ weight + bias


def mlp(
    widths: Sequence[int], batch: int, activation: Callable, dtype: Any = jnp.float32
) -> Workload:
    """Cross-entropy of a network of dense layers."""

    def loss(params, inputs, labels):
        return cross_entropy(apply_dense(params, inputs, activation), labels)

    data = examples((batch, widths[0]), (batch,), widths[-1])
    return Workload(loss, *cast((dense_layers(widths), data), dtype))


def digits(model: str, batch: int, dtype: Any = jnp.float32) -> Workload:
    """Cross-entropy of a model of ``experiments.models`` on 28×28 images."""
    return of_flax(MODELS[model], examples((batch, 28, 28, 1), (batch,), 10), dtype)


def transformer(
    layers: int, width: int, length: int, batch: int, dtype: Any = jnp.float32
) -> Workload:
    """Cross-entropy of the tokens of sequences of embeddings."""
    blocks = [Block(width) for _ in range(layers)]
    model = nn.Sequential([*blocks, nn.LayerNorm(), nn.Dense(32)])
    data = examples((batch, length, width), (batch, length), 32)
    return of_flax(model, data, dtype)


def deep(layers: int, width: int, batch: int, scanned: bool, wrap=None) -> Workload:
    """Mean square of a tanh network of equal layers, written out or scanned.

    ``wrap``, such as ``jax.checkpoint``, is applied to the layer.
    """

    layer = lambda x, weight: jnp.tanh(x @ weight)
    layer = layer if wrap is None else wrap(layer)

    def loss(weights, x):
        if scanned:
            x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, weights)
        else:
            for weight in weights:
                x = layer(x, weight)
        return jnp.mean(x**2)

    stacked = normal(0, layers, width, width) / np.float32(width**0.5)
    weights = stacked if scanned else list(stacked)
    data = (normal(1, batch, width),)
    return Workload(loss, *jax.device_put((weights, data)))


def examples(inputs: tuple, labels: tuple, classes: int) -> tuple:
    """Normal inputs and uniform labels, of these shapes."""
    drawn = np.random.default_rng(51).integers(classes, size=labels, dtype=np.int32)
    return normal(50, *inputs), drawn


def of_flax(model: nn.Module, data: tuple, dtype: Any = jnp.float32) -> Workload:
    """Cross-entropy of a model's logits."""

    def loss(params, inputs, labels):
        return cross_entropy(model.apply(params, inputs), labels)

    params = jax.jit(model.init)(jax.random.key(0), data[0])
    return Workload(loss, *cast((params, data), dtype))
