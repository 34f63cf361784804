"""Losses of one example, of every shape that a model may have."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tests.reference import normal


class Case(NamedTuple):
    """A loss of one example, its parameters and a batch."""

    loss: Any
    params: Any
    batch: Any


EXAMPLES = 5
LABELS = jnp.arange(EXAMPLES) % 3


def cross_entropy(logits, label):
    return -jax.nn.log_softmax(logits)[label]


def dense(params, example):
    x, label = example
    for w, b in params["hidden"]:
        x = jax.nn.relu(x @ w + b)
    return cross_entropy(x @ params["out"], label)


def normalised(params, example):
    """Weight and layer normalisation, and a penalty that knows no example."""
    x, label = example
    w = params["w"] / jnp.linalg.norm(params["w"], axis=0)
    h = jnp.tanh(x @ w)
    h = (h - h.mean()) / jnp.sqrt(h.var() + 0.1) * params["scale"] + params["shift"]
    penalty = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
    return cross_entropy(jnp.sin(h) @ params["out"], label) + 0.1 * penalty


def convolution(params, example):
    x, label = example
    numbers = ("NHWC", "HWIO", "NHWC")
    for kernel in params["kernels"]:
        x = lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", (1, 1), (1, 1), numbers
        )
        x = jax.nn.relu(x[0])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")
    return cross_entropy(x.reshape(-1) @ params["out"], label)


def scanned_layers(params, example):
    """A residual network as a loop over its layers."""
    x, label = example

    def layer(h, weights):
        w, b, v = weights
        return h + jnp.tanh(h @ w + b) @ v, None

    h, _ = lax.scan(layer, jnp.tanh(x @ params["in"]), params["layers"])
    return cross_entropy(h @ params["out"], label)


def nested_scans(params, example):
    """Groups of layers that have a shift in common."""
    x, label = example

    def group(h, group):
        layers, shift = group

        def layer(h, w):
            return jnp.tanh(h @ w + shift), None

        return lax.scan(layer, h, layers)

    h, _ = lax.scan(group, x, params["groups"])
    return cross_entropy(h, label)


def recurrent(params, example):
    """A loop over time, with weights that are the same at all times."""
    xs, label = example

    def step(h, x):
        h = jnp.tanh(x @ params["x"] + h @ params["h"] + params["b"])
        return h, h

    h, hs = lax.scan(step, params["first"], xs, reverse=True)
    return cross_entropy(h @ params["out"], label) + jnp.mean(hs**2)


def transformer(params, tokens):
    """Causal, with tied embeddings; the loss is the mean of that of all tokens."""
    x = params["embedding"][tokens[:-1]]
    mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
    for layer in params["layers"]:
        q, k, v = (x @ layer[name] for name in "qkv")
        scores = jnp.where(mask, q @ k.T / 2, -1e9)
        x = x + jax.nn.softmax(scores) @ v @ layer["o"]
        x = x + jax.nn.gelu(x @ layer["up"] + layer["b"]) @ layer["down"]
    log_probabilities = jax.nn.log_softmax(x @ params["embedding"].T)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, tokens[1:, None], 1))


def encoder_decoder(params, example):
    """Two towers; what the first makes is used in all layers of the second."""
    x, label = example
    seen = x
    for w in params["encoder"]:
        seen = jnp.tanh(seen @ w)
    h = x
    for w, v in params["decoder"]:
        h = h + jnp.tanh(h @ w + seen @ v)
    return cross_entropy(h[:3], label)


def linear_layers(params, example):
    """A loop right behind a product: no cut lies between."""
    x, label = example
    h, _ = lax.scan(lambda h, w: (h @ w, None), x @ params["in"], params["layers"])
    return cross_entropy(h @ params["out"], label)


def long_short_term(params, example):
    """Two arrays are carried, against time."""
    xs, label = example

    def step(carry, x):
        h, c = carry
        gates = x @ params["x"] + h @ params["h"]
        forget, new, out = jnp.split(jax.nn.sigmoid(gates), 3)
        c = forget * c + (1 - forget) * (2 * new - 1)
        return (out * jnp.tanh(c), c), None

    start = jnp.zeros(3), jnp.tanh(params["c"])
    (h, c), _ = lax.scan(step, start, xs, reverse=True)
    return cross_entropy(h + jnp.sin(c), label)


def spectrum(params, example):
    """Complex numbers inside, and complex numbers made of parameters."""
    x, label = example
    z = jnp.fft.rfft(jnp.tanh(x @ params["in"]))
    weights = lax.complex(params["real"], params["imaginary"])
    powers = jnp.abs(z * weights - 0.3j) ** 2
    return cross_entropy(jnp.tanh(powers) @ params["out"], label)


def complex_layers(params, example):
    """A loop that carries complex numbers, so that these are perturbed."""
    x, _ = example

    def layer(z, w):
        return jnp.tanh(z @ lax.complex(w, w.T)) / (1 + jnp.abs(z)), None

    h = x @ params["in"]
    z, _ = lax.scan(layer, lax.complex(h, jnp.cos(h)), params["layers"])
    return jnp.sum(jnp.abs(z @ params["out"] - 0.3j) ** 2)


def low_rank(params, example):
    """LoRA: the weights themselves are fixed."""
    x, y = example
    h = jnp.tanh(x @ FIXED + (x @ params["a"]) @ params["b"])
    return jnp.sum((h @ params["out"] - y) ** 2)


FIXED = normal(6, 8, seed=9) / 3


@jax.custom_jvp
def squashed(x):
    return x / (1 + jnp.abs(x))


@squashed.defjvp
def _squashed_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return squashed(x), t / (1 + jnp.abs(x)) ** 2


def calls(params, example):
    """Jitted, checkpointed and branching layers, and one with a rule of its own."""
    x, label = example
    first, second, third, fourth = params["layers"]
    layer = lambda x, w: jnp.tanh(x @ w)
    x = jax.jit(layer)(x, first)
    x = jax.checkpoint(layer)(x, second)
    x = squashed(x @ third)
    x = lax.cond(x[0] > 0, layer, lambda x, w: jnp.sin(x @ w), x, fourth)
    return cross_entropy(x @ params["out"], label)


@jax.custom_vjp
def root(x):
    return lax.while_loop(
        lambda y: jnp.any(jnp.abs(y + jnp.tanh(y) - x) > 1e-12),
        lambda y: y - (y + jnp.tanh(y) - x) / (2 - jnp.tanh(y) ** 2),
        x,
    )


def _root_fwd(x):
    y = root(x)
    return y, y


def _root_bwd(y, cotangent):
    return (cotangent / (2 - jnp.tanh(y) ** 2),)


root.defvjp(_root_fwd, _root_bwd)


def own_reverse_rule(params, example):
    """A solver without a derivative that JAX could find by itself, in reverse."""
    x, label = example
    return cross_entropy(
        root(root(x @ params["w"]) @ params["v"]) @ params["out"], label
    )


def loop_between(params, example):
    """A loop of unknown length: before it, and in it, reverse mode has no place."""
    x, label = example
    x = jnp.tanh(x @ params["w"])
    relax = lambda y: 0.5 * y + 0.1 * jnp.tanh(y) + params["shift"]
    x = lax.while_loop(lambda y: jnp.max(jnp.abs(y)) > 1.0, relax, 5 * x)
    return cross_entropy(jnp.tanh(x @ params["v"]) @ params["out"], label)


def layers(*shapes, seed=0):
    return [normal(*shape, seed=seed + i) / 2 for i, shape in enumerate(shapes)]


def _vectors(size):
    return normal(EXAMPLES, size, seed=50), LABELS


CASES = {
    "dense": Case(
        dense,
        {
            "hidden": [
                (normal(5, 4), normal(4, seed=1) / 3),
                (normal(4, 6, seed=2), normal(6, seed=3) / 3),
            ],
            "out": normal(6, 3, seed=4),
        },
        _vectors(5),
    ),
    "normalised": Case(
        normalised,
        {
            "w": normal(5, 4),
            "scale": 1 + normal(4, seed=1) / 3,
            "shift": normal(4, seed=2) / 3,
            "out": normal(4, 3, seed=3),
        },
        _vectors(5),
    ),
    "convolution": Case(
        convolution,
        {
            "kernels": [normal(3, 3, 1, 2) / 3, normal(3, 3, 2, 2, seed=1) / 3],
            "out": normal(8, 3, seed=2),
        },
        (normal(EXAMPLES, 8, 8, 1, seed=50), LABELS),
    ),
    "scanned layers": Case(
        scanned_layers,
        {
            "in": normal(5, 4) / 2,
            "layers": tuple(layers((3, 4, 6), (3, 6), (3, 6, 4), seed=1)),
            "out": normal(4, 3, seed=5),
        },
        _vectors(5),
    ),
    "nested scans": Case(
        nested_scans,
        {"groups": (normal(2, 3, 3, 3), normal(2, 3, seed=1) / 3)},
        _vectors(3),
    ),
    "recurrent": Case(
        recurrent,
        dict(
            zip(
                ("x", "h", "b", "first", "out"),
                layers((2, 4), (4, 4), (4,), (4,), (4, 3)),
            )
        ),
        (normal(EXAMPLES, 6, 2, seed=50), LABELS),
    ),
    "transformer": Case(
        transformer,
        {
            "embedding": normal(7, 4),
            "layers": [
                dict(
                    zip(
                        ("q", "k", "v", "o", "up", "b", "down"),
                        layers(*[(4, 4)] * 4, (4, 8), (8,), (8, 4), seed=seed),
                    )
                )
                for seed in (1, 20)
            ],
        },
        jax.random.randint(jax.random.key(0), (EXAMPLES, 6), 0, 7),
    ),
    "encoder and decoder": Case(
        encoder_decoder,
        {
            "encoder": layers(*[(4, 4)] * 10),
            "decoder": [layers((4, 4), (4, 4), seed=seed) for seed in (20, 30)],
        },
        _vectors(4),
    ),
    "linear layers": Case(
        linear_layers,
        dict(zip(("in", "layers", "out"), layers((4, 4), (3, 4, 4), (4, 3)))),
        _vectors(4),
    ),
    "long short-term": Case(
        long_short_term,
        dict(zip(("x", "h", "c"), layers((2, 9), (3, 9), (3,)))),
        (normal(EXAMPLES, 4, 2, seed=50), LABELS),
    ),
    "spectrum": Case(
        spectrum,
        dict(
            zip(("in", "real", "imaginary", "out"), layers((4, 4), (3,), (3,), (3, 3)))
        ),
        _vectors(4),
    ),
    "low rank": Case(
        low_rank,
        dict(zip(("a", "b", "out"), layers((6, 2), (2, 8), (8, 2)))),
        (normal(EXAMPLES, 6, seed=50), normal(EXAMPLES, 2, seed=51)),
    ),
    "calls": Case(
        calls,
        {"layers": layers(*[(4, 4)] * 4), "out": normal(4, 3, seed=5)},
        _vectors(4),
    ),
    "a reverse rule of its own": Case(
        own_reverse_rule,
        dict(zip(("w", "v", "out"), layers((4, 4), (4, 4), (4, 3)))),
        _vectors(4),
    ),
    "complex layers": Case(
        complex_layers,
        dict(zip(("in", "layers", "out"), layers((4, 4), (3, 4, 4), (4, 3)))),
        _vectors(4),
    ),
}
LOOP = Case(
    loop_between,
    {
        **dict(zip(("w", "v", "out"), layers((4, 4), (4, 4), (4, 3)))),
        "shift": normal(4, seed=7) / 20,
    },
    _vectors(4),
)


def mean_loss(case):
    return lambda params: jnp.mean(jax.vmap(case.loss, (None, 0))(params, case.batch))
