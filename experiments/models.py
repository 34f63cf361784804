"""The classifiers of the studies, in flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class SoftmaxRegression(nn.Module):
    """One dense layer: 7,850 parameters on 28×28 images."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(10)(images.reshape(len(images), -1))


class MLP(nn.Module):
    """One hidden layer of 100: 79,510 parameters on 28×28 images."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(100)(images.reshape(len(images), -1)))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions and two dense layers: 431,080 parameters on 28×28 images."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for features in (20, 50):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(500)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class VGG(nn.Module):
    """Three pairs of convolutions and two dense layers: 814,570 parameters on 32×32×3.

    The paper's network for CIFAR-10, with group instead of batch normalisation, so
    that the loss is a sum over images, and a smaller dense layer without dropout.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for features in (32, 64, 128):
            for _ in range(2):
                x = nn.Conv(features, (3, 3), use_bias=False)(x)
                x = nn.relu(nn.GroupNorm(num_groups=8)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


MODELS = {"softmax": SoftmaxRegression(), "mlp": MLP(), "cnn": CNN(), "vgg": VGG()}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of integer labels."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Fraction of labels that have the largest logit."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)
