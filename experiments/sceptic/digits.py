"""The digits that a package ships: 3,000 to train, 1,000 to validate, 1,000 to test."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.data import load_small, load_validation
from experiments.models import MODELS
from experiments.sceptic.contenders import K
from experiments.sceptic.problem import Problem
from experiments.training import make_evaluation, make_losses

BATCH = {"softmax": 256, "mlp": 256, "cnn": 128}
PASSES = {"softmax": 40_000, "mlp": 20_000, "cnn": 1500}
# Learning rates that differ from those of the methods.
RATES = {
    "softmax": {"SGD": 0.01, "Adam": 3e-4, f"multi-tangent({K})": 10.0},
    "mlp": {"Adam": 1e-4, "estimate, 2 blocks, Adam": 3e-4},
    "cnn": {"SGD": 0.1, "EGGROLL": 1e-2},
}
# Layers that "tail only" trains.
TAIL = {"softmax": (), "mlp": ("Dense_1",), "cnn": ("Dense_0", "Dense_1")}


def make(name: str) -> Problem:
    """Softmax regression, one hidden layer of 100, or two convolutions."""
    model = MODELS[name]
    train, validation = load_validation()
    splits = {"validation": validation, "test": load_small().test}
    _, loss_of_one = make_losses(model)
    evaluate = make_evaluation(model)
    images, labels = map(jnp.asarray, train)

    def sample(key):
        chosen = jax.random.randint(key, (BATCH[name],), 0, len(labels))
        return images[chosen], labels[chosen]

    def evaluated(params, split):
        loss, accuracy = evaluate(params, *splits[split])
        return {"loss": float(loss), "accuracy": float(accuracy)}

    return Problem(
        {"softmax": "softmax regression", "mlp": "784-100-10", "cnn": "CNN"}[name],
        init=lambda seed: model.init(jax.random.key(seed), images[:1]),
        loss_of_one=loss_of_one,
        rematerialised=rematerialised_cnn if name == "cnn" else None,
        sample=sample,
        evaluate=evaluated,
        in_tail=in_layers(TAIL[name]) if TAIL[name] else None,
        passes=PASSES[name],
        stops_early=True,
        rates=RATES[name],
        in_loop=name != "cnn",  # XLA transposes a convolution slowly in a loop
    )


def in_layers(layers: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a path is that of a parameter of one of the layers."""
    return lambda path: any(f"['{layer}']" in path for layer in layers)


def rematerialised_cnn(params: Any, example: Any) -> jax.Array:
    """The loss of ``experiments.models.CNN``, each layer of which is computed again."""
    image, label = example
    layers = params["params"]
    x = image[None]

    @jax.checkpoint
    def convolved(layer, x):
        features = layer["bias"].size
        conv = nn.Conv(features, (5, 5), padding="VALID")
        x = nn.relu(conv.apply({"params": layer}, x))
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    @jax.checkpoint
    def dense(layer, x):
        return nn.relu(x @ layer["kernel"] + layer["bias"])

    for name in ("Conv_0", "Conv_1"):
        x = convolved(layers[name], x)
    x = dense(layers["Dense_0"], x.reshape(1, -1))
    logits = x @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    return -nn.log_softmax(logits[0])[label]
