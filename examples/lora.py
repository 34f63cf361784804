# %% [markdown]
# # Tuning low-rank adapters of a language model
#
# This tutorial tunes a small language model to another kind of text by low-rank
# adapters (LoRA) with `fomoh_ap()`, which makes no backward pass across the model's
# blocks. Beside it are the alternatives: two evaluations of the loss per step (MeZO),
# backpropagation through the last layer alone, and backpropagation through all. The
# guide is [gradients without a backward pass](../guide/forward-gradients.md).

# %%
import argparse
import ast
import collections
import dataclasses
import datetime
import difflib
import inspect
import typing
from functools import partial
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

import fomoh_jax

# %% [markdown]
# ## Two texts
#
# Both come with Python. The model learns from the source of some modules of the
# standard library, and is tuned to the reference manual of the language, which is
# prose.

# %%
modules = [argparse, ast, collections, dataclasses, datetime, difflib, inspect, typing]
source = "".join(inspect.getsource(module) for module in modules)
manual = "".join(topics[name] for name in sorted(topics))
length = 32  # bytes that the model sees


def encode(text):
    return jnp.asarray(np.frombuffer(text.encode(), np.uint8))


def sample(text, key, count=16):
    starts = jax.random.randint(key, (count, 1), 0, len(text) - length)
    return text[starts + jnp.arange(length + 1)].astype(jnp.int32)


source, manual = encode(source), encode(manual)
split = len(manual) * 3 // 4
manual_to_train, manual_to_test = manual[:split], manual[split:]
held_out = sample(manual_to_test, jax.random.key(9), 256)
print(f"{len(source):,} bytes of source, {len(manual):,} bytes of manual")

# %% [markdown]
# ## The model
#
# It is a causal transformer that reads bytes. With a rank, every linear map of the
# layers has an adapter, a product of two thin matrices that starts at zero. Before the
# last layer we mark a cut, which `fomoh_ap()` will use.


# %%
class Layer(nnx.Module):
    def __init__(self, width, linear, rngs):
        self.first_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = linear(width, 3 * width, rngs=rngs)
        self.output = linear(width, width, rngs=rngs)
        self.second_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = linear(width, 4 * width, rngs=rngs)
        self.down = linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        heads = self.attention(self.first_norm(x)).reshape(len(x), 3, 4, -1)
        query, key, value = jnp.moveaxis(heads, 1, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.second_norm(x))))


class LanguageModel(nnx.Module):
    def __init__(self, rank=0, width=48, layers=2):
        rngs = nnx.Rngs(0)
        linear = nnx.Linear
        if rank:
            linear = lambda *sizes, rngs: nnx.LoRALinear(
                *sizes, lora_rank=rank, rngs=rngs
            )
        self.embed = nnx.Embed(256, width, rngs=rngs)
        place = 0.02 * jax.random.normal(rngs.params(), (length, width))
        self.place = nnx.Param(place)
        self.layers = nnx.List([Layer(width, linear, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, text):
        x = self.embed(text) + self.place[...]
        *lower, last = self.layers
        for layer in lower:
            x = layer(x)
        return self.head(self.norm(last(fomoh_jax.cut(x))))


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def cross_entropy(model, text):
    """The mean over the bytes of a text, in nats."""
    logits, targets = model(text[:-1]), text[1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.mean(losses)


# %% [markdown]
# ## Training before the tuning
#
# Adam trains all parameters on the source code for 400 steps.


# %%
@partial(jax.jit, static_argnames="step")
def loop(step, carry, text, keys):
    """Many steps in one compiled loop."""

    def body(carry, key):
        return step(carry, sample(text, key), key), None

    return jax.lax.scan(body, carry, keys)[0]


def adam_steps(loss_of_one, tx):
    def mean_loss(params, batch):
        return jnp.mean(jax.vmap(loss_of_one, (None, 0))(params, batch))

    def step(carry, batch, key):
        params, state = carry
        gradient = jax.grad(mean_loss)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


graph, pretrained = nnx.split(LanguageModel())
loss_of_all = lambda params, text: cross_entropy(nnx.merge(graph, params), text)
tx = optax.adam(optax.cosine_decay_schedule(4e-3, 400))
carry = (pretrained, tx.init(pretrained))
keys = jax.random.split(jax.random.key(0), 400)
pretrained, _ = loop(adam_steps(loss_of_all, tx), carry, source, keys)
print(f"{count(pretrained):,} parameters")

# %% [markdown]
# ## The adapters
#
# `nnx.split` takes the adapters apart from the frozen parameters, which are those of
# the trained model.

# %%
graph_with_adapters, adapters, frozen = nnx.split(
    LanguageModel(rank=4), nnx.LoRAParam, ...
)
nnx.replace_by_pure_dict(frozen, nnx.to_pure_dict(pretrained))
adapters = nnx.to_pure_dict(adapters)


def loss_of_one(adapters, text):
    return cross_entropy(nnx.merge(graph_with_adapters, adapters, frozen), text)


@jax.jit
def mean_loss(adapters, texts):
    return jnp.mean(jax.vmap(loss_of_one, (None, 0))(adapters, texts))


loss_before = float(mean_loss(adapters, held_out))
print(
    f"{count(adapters):,} parameters of adapters, loss on the manual {loss_before:.3f}"
)

# %% [markdown]
# ## Tuning without a backward pass
#
# `fomoh_ap()` has no learning rate. At the mark it cuts the model into two blocks. The
# gradient of the last one is exact, and that of the other is estimated from perturbed
# activations.

# %%
for block in fomoh_jax.blocks_of(loss_of_one, adapters, held_out[0], blocks="marked"):
    print(f"perturbs {block.perturbs}, {len(block.parameters)} arrays of adapters")
tx = fomoh_jax.fomoh_ap(blocks="marked")


def fomoh_ap_step(carry, batch, key):
    params, state = carry
    updates, state = tx.update(None, state, params, value_fn=loss_of_one, batch=batch)
    return optax.apply_updates(params, updates), state


results = {}


def tune(name, step, carry, steps=250, whole=lambda params: params):
    keys = jax.random.split(jax.random.key(1), steps)
    params, _ = loop(step, carry, manual_to_train, keys)
    results[name] = float(mean_loss(whole(params), held_out))
    print(f"{name}: loss {results[name]:.3f} after {steps} steps")


tune("fomoh_ap()", fomoh_ap_step, (adapters, tx.init(adapters)))

# %% [markdown]
# ## Two evaluations of the loss
#
# MeZO (Malladi et al., 2023) evaluates the loss at both ends of a random direction and
# steps along it. We allow it twice as many steps, since one of them is little work. Its
# learning rate matters, so that we try three.

# %%
flat_adapters, unravel = ravel_pytree(adapters)


def mezo_step(carry, batch, key):
    params, rate = carry
    direction = 1e-3 * jax.random.normal(key, params.shape)

    def loss(params):
        return mean_loss(unravel(params), batch)

    difference = loss(params + direction) - loss(params - direction)
    return params - rate * difference / 2e-6 * direction, rate


for rate in (1e-3, 1e-2, 1e-1):
    carry = (flat_adapters, jnp.float32(rate))
    tune(f"MeZO, {rate:g}", mezo_step, carry, steps=500, whole=unravel)

# %% [markdown]
# ## Backpropagation
#
# Where memory allows the activations of one layer, Adam can tune the adapters of the
# last layer alone, which are those whose gradient is exact above. Where memory allows
# those of all layers, it can tune all. The learning rate was not searched for.


# %%
def with_last(layer):
    return {**adapters, "layers": {**adapters["layers"], 1: layer}}


adam = optax.adam(3e-3)
last_layer = adapters["layers"][1]
loss_of_last = lambda layer, text: loss_of_one(with_last(layer), text)
tune(
    "Adam, last layer",
    adam_steps(loss_of_last, adam),
    (last_layer, adam.init(last_layer)),
    whole=with_last,
)
tune("Adam", adam_steps(loss_of_one, adam), (adapters, adam.init(adapters)))

# %% [markdown]
# ## What it is worth
#
# `fomoh_ap()` should end between the two runs of Adam: it knows the gradient of the
# last layer, and that of the other one with noise. MeZO, which learns one number at
# each step, stays behind. A bar that reaches the right edge is cut there. Where
# backpropagation fits into memory, it is the better choice.

# %%
names = list(results)[::-1]
figure, panel = plt.subplots(figsize=(6, 3.5))
panel.barh(names, [results[name] for name in names], color="grey")
panel.axvline(loss_before, color="black", ls="--", label="before the tuning")
panel.set(xlabel="loss on held-out text (nats per byte)")
panel.set_xlim(min(results.values()) - 0.1, loss_before + 0.1)
panel.legend(loc="lower right")
figure.tight_layout()
