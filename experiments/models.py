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


class DeepMLP(nn.Module):
    """Four hidden layers of 256: 400,906 parameters on 28×28 images."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        for _ in range(4):
            x = nn.relu(nn.Dense(256)(x))
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


class Block(nn.Module):
    """A pre-layernorm transformer layer, of sequences ``[..., length, width]``."""

    width: int
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normed = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(normed, normed)
        wide = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
        return x + nn.Dense(self.width)(nn.gelu(wide))


class RowTransformer(nn.Module):
    """Two transformer layers over the rows of an image."""

    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        rows = images.reshape(*images.shape[:2], -1)
        place = self.param("place", nn.initializers.normal(0.02), (1, *rows.shape[1:]))
        x = nn.Dense(self.width)(rows + place)
        for _ in range(2):
            x = Block(self.width)(x)
        return nn.Dense(10)(jnp.mean(nn.LayerNorm()(x), axis=1))


MODELS = {
    "softmax": SoftmaxRegression(),
    "mlp": MLP(),
    "deep": DeepMLP(),
    "cnn": CNN(),
    "vgg": VGG(),
    "rows": RowTransformer(),
}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of integer labels."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Fraction of labels that have the largest logit."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)
