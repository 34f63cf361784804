"""Methods that move some of the parameters and leave the rest as they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fomoh_jax


def estimated(
    loss_of_one: Callable, params: Any, example: Any, blocks: int | None
) -> Any:
    """A tree of Booleans like the parameters: true if a gradient is estimated."""
    found = fomoh_jax.blocks_of(loss_of_one, params, example, blocks=blocks)
    names = {name for b in found if b.perturbs != "nothing" for name in b.parameters}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path) in names, params
    )


def with_frozen(
    inner: optax.GradientTransformationExtraArgs, frozen: Any
) -> optax.GradientTransformationExtraArgs:
    """A method of the loss of one example that leaves some parameters as they are."""
    still = jax.tree.leaves(frozen)

    def moving(params):
        return [x for x, rests in zip(jax.tree.leaves(params), still) if not rests]

    def merged(params, parts):
        parts, (leaves, structure) = iter(parts), jax.tree.flatten(params)
        whole = [x if rests else next(parts) for x, rests in zip(leaves, still)]
        return structure.unflatten(whole)

    def update(updates, state, params=None, *, value_fn, batch):
        del updates
        part = lambda parts, example: value_fn(merged(params, parts), example)
        step, state = inner.update(
            None, state, moving(params), value_fn=part, batch=batch
        )
        return merged(jax.tree.map(jnp.zeros_like, params), step), state

    init = lambda params: inner.init(moving(params))
    return optax.GradientTransformationExtraArgs(init, update)
