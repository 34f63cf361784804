"""Methods of the mean loss, called with the loss of one example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def mean_loss(loss_of_one: Callable, batch: Any) -> Callable[[Any], jax.Array]:
    """The mean over the examples of a batch, as a function of the parameters."""
    return lambda params: jnp.mean(jax.vmap(loss_of_one, (None, 0))(params, batch))


def of_mean(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that takes a function of the parameters as ``value_fn``."""

    def update(updates, state, params=None, *, value_fn, batch):
        loss = mean_loss(value_fn, batch)
        return inner.update(updates, state, params, value_fn=loss)

    return optax.GradientTransformationExtraArgs(inner.init, update)
