"""Typed PRNG keys as plain numbers, for what knows nothing of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def keys_as_data(tree: Any) -> Any:
    """NumPy arrays, and typed PRNG keys as the numbers that they stand for."""
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree
    )


def data_as_keys(tree: Any, like: Any) -> Any:
    """The inverse of :func:`keys_as_data`, with the keys where ``like`` has them."""

    def convert(x, like):
        if _is_key(like):
            return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like))
        return jnp.asarray(x, like.dtype)

    return jax.tree.map(convert, tree, like)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
