"""Small residual networks on images (He, Zhang, Ren and Sun, 2016)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.workloads import Workload, cast, examples
from experiments.models import cross_entropy

NORMALISATIONS = {
    "batch": functools.partial(nn.BatchNorm, use_running_average=True),
    "group": functools.partial(nn.GroupNorm, num_groups=4),
}


class ResNet(nn.Module):
    """Three stages, each a block of two convolutions with its shortcut."""

    normalise: Callable[[], nn.Module]
    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(self.normalise()(_convolution(self.widths[0])(images)))
        for stage, width in enumerate(self.widths):
            stride = 2 if stage else 1
            y = nn.relu(self.normalise()(_convolution(width, stride)(x)))
            y = self.normalise()(_convolution(width)(y))
            shortcut = nn.Conv(width, (1, 1), stride)(x) if stage else x
            x = nn.relu(y + shortcut)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


def residual_network(normalisation: str, size: int, batch: int) -> Workload:
    """Cross-entropy of square images; statistics of batches are data, held fixed."""
    model = ResNet(NORMALISATIONS[normalisation])

    def loss(params, images, labels, statistics):
        logits = model.apply({"params": params, **statistics}, images)
        return cross_entropy(logits, labels)

    images, labels = examples((batch, size, size, 3), (batch,), 10)
    statistics = dict(jax.jit(model.init)(jax.random.key(0), images))
    params = statistics.pop("params")
    data = images, labels, statistics
    return Workload(loss, *cast((params, data), jnp.float32))


def _convolution(width: int, stride: int = 1) -> nn.Module:
    return nn.Conv(width, (3, 3), stride, use_bias=False)
