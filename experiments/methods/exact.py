"""The first link of a chain: the exact gradient."""

from collections.abc import Callable

import jax
import optax

from experiments.methods.mean import mean_loss


def backpropagated() -> optax.GradientTransformationExtraArgs:
    """The gradient by a reverse pass.

    Of a loss that is written with ``jax.checkpoint``, it recomputes what that says.
    """
    return _exact(jax.grad)


def forward_accumulated() -> optax.GradientTransformationExtraArgs:
    """The gradient by a tangent for each parameter, where no reverse pass can go."""
    return _exact(jax.jacfwd)


def _exact(gradient: Callable) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, value_fn, batch):
        del updates
        return gradient(mean_loss(value_fn, batch))(params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
