"""Losses of one sequence: causal ones, and others that must not be taken for such."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.activations.models import Case, layers
from tests.reference import normal

LENGTH, WIDTH = 5, 6
TRIANGLE = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))


# Layers ``[length, width] -> [length, width]``.


def attention(mask, axis=-1):
    """By scores under a mask, or all of them, normalised over an axis."""

    def layer(w, x):
        scores = x @ w @ x.T / 2
        if mask is not None:
            scores = jnp.where(mask, scores, -1e9)
        return jax.nn.softmax(scores, axis) @ x

    return layer


def added_mask(w, x):
    bias = jnp.where(jnp.arange(LENGTH)[:, None] >= jnp.arange(LENGTH), 0, -jnp.inf)
    return jax.nn.softmax(x @ w @ x.T + bias) @ x


def library_attention(w, x):
    q = (x @ w)[None, :, None]
    k = x[None, :, None]
    return jax.nn.dot_product_attention(q, k, k, is_causal=True)[0, :, 0]


def multi_head(w, x):
    heads = lambda x: x.reshape(LENGTH, 2, WIDTH // 2)
    q, k, v = (heads(y) for y in jnp.split(x @ jnp.concatenate([w, w.T, w], 1), 3, 1))
    scores = jnp.einsum("ihd,jhd->hij", q, k)
    bias = jnp.finfo(scores.dtype).min
    weights = jax.nn.softmax(jnp.where(TRIANGLE, scores, bias), axis=-1)
    return jnp.einsum("hij,jhd->ihd", weights, v).reshape(LENGTH, WIDTH)


def linear_attention(w, x):
    return jnp.tril(x @ w @ x.T) @ x


def shifted(w, x):
    before = jnp.concatenate([jnp.zeros((1, WIDTH)), x[:-1]])
    return x + jnp.pad(x, ((2, 0), (0, 0)))[:LENGTH] + before @ w


def convolved(low, high):
    def layer(w, x):
        kernel = jnp.stack([w, w.T, jnp.eye(WIDTH)])
        y = lax.conv_general_dilated(
            x[None],
            kernel,
            (1,),
            [(low, high)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y[0]

    return layer


def over_time(reverse):
    def layer(w, x):
        def step(h, x):
            h = jnp.tanh(h @ w + x)
            return h, h

        return lax.scan(step, jnp.zeros(WIDTH), x, reverse=reverse)[1]

    return layer


def own_rule(spread):
    """A function with a derivative of its own, that may mix positions."""

    @jax.custom_jvp
    def same(x):
        return x

    @same.defjvp
    def _same_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        return x, t + spread * t[::-1]

    return lambda w, x: same(x @ w)


def data_masked(w, x):
    """The first row may see nothing, and then sees everything."""
    seen = jnp.where(jnp.arange(LENGTH) > 0, x @ w @ x.T, -1e9)
    return jax.nn.softmax(jnp.where(TRIANGLE, seen, -1e9)) @ x


def hidden(w, x):
    """What is masked where a triangle that is computed here is not."""
    scores = x @ w @ x.T
    seen = jnp.tril(jnp.ones_like(scores, bool))
    return jax.nn.softmax(jnp.where(~seen, -jnp.inf, scores)) @ x


def short_floats(w, x):
    """The first row sees nothing, and then sees everything."""
    scores, seen = (x @ w @ x.T).astype("float16"), TRIANGLE.at[0].set(False)
    masked = jnp.where(seen, scores, jnp.finfo("float16").min)
    return jax.nn.softmax(masked).astype(x.dtype) @ x


def rotated(axis):
    """Two halves are rotated, each by an angle of its own; one beside the other."""

    def layer(w, x):
        first, second = jnp.split(x @ w, 2, 1)
        angle = jnp.arange(LENGTH)[:, None] / 2
        parts = jnp.stack([jnp.sin(angle) * first, jnp.cos(angle) * second], axis)
        one, other = jnp.unstack(parts, axis=axis)
        return jnp.tile(one, (1, 2)) * other[:, :1] + parts.reshape(LENGTH, WIDTH)

    return layer


CAUSAL = {
    "attention": attention(TRIANGLE),
    "an added mask": added_mask,
    "a mask that hides": hidden,
    "attention of jax": library_attention,
    "heads": multi_head,
    "linear attention": linear_attention,
    "a window": attention(TRIANGLE & ~jnp.tril(TRIANGLE, -3)),
    "strictly before": lambda w, x: jnp.tril(x @ w @ x.T, -1) @ x,
    "shifts": shifted,
    "a causal convolution": convolved(2, 0),
    "a loop over time": over_time(False),
    "a cumulative sum": lambda w, x: jnp.cumsum(x @ w, 0),
    "a triangular matrix": lambda w, x: jnp.tril(jnp.ones((LENGTH, LENGTH))) @ x @ w,
    "a normalisation": lambda w, x: jax.nn.standardize(x @ w),
    "a rule of its own": lambda w, x: jax.nn.relu(x @ w) + jax.nn.silu(x),
    "rotations": rotated(2),
    "rotations beside each other": rotated(1),
    "a name": lambda w, x: checkpoint_name(x @ w, "hidden"),
    "a checkpoint": lambda w, x: jax.checkpoint(attention(TRIANGLE))(w, x),
    "a transposition": lambda w, x: jnp.tanh(w @ x.T).T,
}
MIXING = {
    "attention without a mask": attention(None),
    "a mask above the diagonal": attention(jnp.tril(jnp.ones((LENGTH,) * 2), 1) > 0),
    "an upper mask": attention(TRIANGLE.T),
    "softmax over queries": attention(TRIANGLE, 0),
    "a row that sees nothing": attention(TRIANGLE.at[0].set(False)),
    "a row that may see nothing": data_masked,
    "a row that sees nothing, of short floats": short_floats,
    "a mask that hides, across": lambda w, x: (
        jnp.where(~jnp.tril(jnp.ones((LENGTH,) * 2, bool)), 0, x @ w @ x.T).T @ x
    ),
    "a weak mask": lambda w, x: (
        jax.nn.softmax(jnp.where(TRIANGLE, x @ w @ x.T, -1.0)) @ x
    ),
    "attention across": lambda w, x: (
        jax.nn.softmax(jnp.where(TRIANGLE, x @ w @ x.T, -1e9)).T @ x
    ),
    "a mean": lambda w, x: x @ w + jnp.mean(x, 0),
    "a cumulative sum from the end": lambda w, x: lax.cumsum(x @ w, 0, reverse=True),
    "a convolution of both sides": convolved(1, 1),
    "a flip": lambda w, x: (x @ w)[::-1],
    "a roll": lambda w, x: jnp.roll(x @ w, -1, 0),
    "a shift from later": lambda w, x: jnp.pad(x[1:], ((0, 1), (0, 0))) @ w,
    "a permutation": lambda w, x: (x @ w)[jnp.array([1, 0, 2, 4, 3])],
    "parts one after the other": rotated(0),
    "the last of several": lambda w, x: x + jnp.unstack(x @ w)[-1],
    "a sort": lambda w, x: jnp.sort(x @ w, 0),
    "a loop against time": over_time(True),
    "another reshaping": lambda w, x: (x @ w).reshape(WIDTH, LENGTH).T,
    "a softmax over positions": lambda w, x: jax.nn.softmax(x @ w, 0),
    "a rule that mixes": own_rule(0.5),
    "a branch": lambda w, x: lax.cond(x[0, 0] > 0, jnp.sin, lambda x: x[::-1], x @ w),
    "an upper triangle": lambda w, x: jnp.triu(x @ w @ x.T) @ x,
    "a difference of the norm": lambda w, x: x @ w / jnp.linalg.norm(x),
}


def stacked(layer, summed=jnp.mean):
    """Losses per token of three products, with a layer behind the first."""

    def loss(params, example):
        x, y = example
        x = jnp.tanh(x @ params["in"])
        x = x + layer(params["layer"], x)
        x = jnp.tanh(x @ params["middle"])
        return summed(jnp.sum((x @ params["out"] - y) ** 2, -1))

    return loss


SHAPES = ((WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 2))
PARAMS = dict(zip(("in", "layer", "middle", "out"), layers(*SHAPES)))
BATCH = normal(3, LENGTH, WIDTH, seed=50), normal(3, LENGTH, 2, seed=51)


class Transformer(nn.Module):
    """Causal, of two layers."""

    @nn.compact
    def __call__(self, tokens):
        place = self.param("place", nn.initializers.normal(0.5), (len(tokens), 4))
        x = nn.Embed(5, 4, param_dtype=place.dtype)(tokens) + place
        for _ in range(2):
            normed = nn.LayerNorm()(x)
            mask = nn.make_causal_mask(x[..., 0])
            x = x + nn.MultiHeadDotProductAttention(2)(normed, normed, mask=mask)
            x = x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))
        return nn.Dense(5)(nn.LayerNorm()(x))


def flax_transformer(params, tokens):
    logits = Transformer().apply(params, tokens[:-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    return jnp.mean(losses)


def scanned_transformer(params, tokens):
    """A loop over the layers, and a loss with weights; all logits but the last."""
    x = params["embedding"][tokens]
    length = len(tokens)
    mask = jnp.tril(jnp.ones((length, length), bool))

    def layer(x, w):
        q, k, v = (x @ w[name] for name in "qkv")
        scores = jnp.where(mask, q @ k.T / 2, -1e9)
        x = x + jax.nn.softmax(scores) @ v
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    x, _ = lax.scan(layer, x, params["layers"])
    log_probabilities = jax.nn.log_softmax(x @ params["embedding"].T)[:-1]
    losses = -jnp.take_along_axis(log_probabilities, tokens[1:, None], 1)[:, 0]
    weights = (tokens[1:] > 0) + 0.5
    return jnp.sum(losses * weights) / jnp.sum(weights)


def recurrent_language(params, tokens):
    """Two loops over time; the loss is of each step."""
    x = params["embedding"][tokens[:-1]]

    def cell(w):
        def step(h, x):
            h = jnp.tanh(x @ w["x"] + h @ w["h"])
            return h, h

        return step

    for w in params["cells"]:
        _, x = lax.scan(cell(w), jnp.zeros(3), x)
    log_probabilities = jax.nn.log_softmax(x @ params["out"])
    losses = -jnp.take_along_axis(log_probabilities, tokens[1:, None], 1)
    penalty = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
    return jnp.mean(losses) + 0.1 * penalty


def _tokens(count):
    return jax.random.randint(jax.random.key(0), (count, LENGTH + 1), 0, 5)


def _init():
    params = Transformer().init(jax.random.key(1), _tokens(1)[0, :-1])
    return jax.tree.map(lambda x: x.astype(float) + normal(*x.shape) / 5, params)


SEQUENCES = {
    "flax transformer": Case(flax_transformer, _init(), _tokens(4)),
    "scanned transformer": Case(
        scanned_transformer,
        {
            "embedding": normal(7, 4),
            "layers": dict(
                zip(
                    ("q", "k", "v", "up", "down"),
                    layers(*[(2, 4, 4)] * 3, (2, 4, 8), (2, 8, 4)),
                )
            ),
        },
        _tokens(4),
    ),
    "recurrent language": Case(
        recurrent_language,
        {
            "embedding": normal(5, 3),
            "cells": [
                dict(zip("xh", layers((3, 3), (3, 3), seed=seed))) for seed in (1, 5)
            ],
            "out": normal(3, 5, seed=9),
        },
        _tokens(4),
    ),
}
