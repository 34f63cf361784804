"""Programs that people differentiate, small, each with its arguments."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.reference import normal


def rosenbrock(x):
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def mlp(activation):
    def loss(params, x):
        h = activation(x @ params["w1"] + params["b1"])
        return jnp.mean((h @ params["w2"]) ** 2)

    params = {"w1": normal(3, 4), "b1": normal(4), "w2": normal(4, 2)}
    return loss, (params, normal(5, 3, seed=1))


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def cnn(params, images, labels):
    """The paper's CNN with fewer features on smaller images."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = images
    for name in ("c1", "c2"):
        kernel, bias = params[name]
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=numbers
        )
        x = max_pool(jax.nn.relu(x + bias))
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["d1"])
    return softmax_cross_entropy(x @ params["d2"], labels)


def softmax_cross_entropy(logits, labels):
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


def cnn_arguments():
    params = {
        "c1": (normal(3, 3, 1, 2), normal(2)),
        "c2": (normal(3, 3, 2, 3), normal(3)),
        "d1": normal(12, 4),
        "d2": normal(4, 3),
    }
    return params, normal(2, 14, 14, 1), jnp.array([0, 2])


def attention_block(params, x):
    """Layer norm, causal attention with two heads, and a residual."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    h = centred * lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    h = h * params["scale"]
    q, k, v = jnp.einsum("btd,cdhe->cbthe", h, params["qkv"])
    scores = jnp.einsum("bthe,bshe->bhts", q, k) / jnp.sqrt(2.0)
    causal = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
    mixed = jnp.einsum("bhts,bshe->bthe", weights, v)
    return x + jnp.einsum("bthe,hed->btd", mixed, params["out"])


def attention_arguments():
    params = {"scale": normal(4), "qkv": normal(3, 4, 2, 2), "out": normal(2, 2, 4)}
    return params, normal(2, 3, 4)


def recurrent(params, inputs):
    """A recurrent network whose state has no tangent before the first step."""

    def cell(h, x):
        h = jnp.tanh(params["h"] @ h + params["x"] * x)
        return h, jnp.sum(h**2)

    h, norms = lax.scan(cell, jnp.zeros(3), inputs)
    return jnp.sum(h) + jnp.mean(norms)


def newton_root(a):
    """``x`` with ``x³ + x = a``, by Newton's iteration to convergence."""

    def unfinished(state):
        _, step, count = state
        return (jnp.max(jnp.abs(step)) > 1e-14) & (count < 50)

    def iterate(state):
        x, _, count = state
        step = (x**3 + x - a) / (3 * x**2 + 1)
        return x - step, step, count + 1

    return lax.while_loop(unfinished, iterate, (a, jnp.ones_like(a), 0))[0]


def branch(x):
    return lax.cond(x[0] > 0, lambda x: jnp.sin(x) * x[1], lambda x: x**3, x)


def solve(a, b):
    return jnp.linalg.solve(a @ a.T + 3 * jnp.eye(3), b)


def cholesky(a):
    return jnp.linalg.cholesky(a @ a.T + 3 * jnp.eye(3))


ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}

PROGRAMS = {
    "rosenbrock": (rosenbrock, (normal(4),)),
    **{f"mlp_{name}": mlp(activation) for name, activation in ACTIVATIONS.items()},
    "attention": (attention_block, attention_arguments()),
    "softmax_cross_entropy": (
        lambda logits: softmax_cross_entropy(logits, jnp.array([0, 2, 1])),
        (normal(3, 4),),
    ),
    "scan": (recurrent, ({"h": normal(3, 3), "x": normal(3)}, normal(4))),
    "while": (newton_root, (normal(3),)),
    "cond_true": (branch, (jnp.array([0.5, -1.0, 2.0]),)),
    "cond_false": (branch, (jnp.array([-0.5, -1.0, 2.0]),)),
    "solve": (solve, (normal(3, 3), normal(3))),
    "cholesky": (cholesky, (normal(3, 3),)),
}
