"""Linear algebra on stacks of vectors that are trees: Gram matrices, combinations."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fomoh_jax.hyperdual.active import as_active, is_active


def gram(vectors: Any, dtype: Any = None) -> jax.Array:
    """``VᵀV``, accumulated in ``dtype``: by default that of the leaves, or float32."""
    if dtype is None:
        arrays = [
            as_active(v).array for v in jax.tree.leaves(vectors, is_leaf=is_active)
        ]
        dtype = jnp.result_type(jnp.float32, *arrays)

    def of_leaf(leaf):
        v = as_active(leaf)
        n, *shape = v.array.shape
        flat = v.array.reshape(n, math.prod(shape))
        block = jnp.einsum("ia,ja->ij", flat, flat, preferred_element_type=dtype)
        if len(v.present) == v.k:
            return block
        places = np.ix_(v.present, v.present)
        return jnp.zeros((v.k, v.k), dtype).at[places].set(block)

    leaves = jax.tree.leaves(vectors, is_leaf=is_active)
    return jnp.sum(jnp.stack(list(map(of_leaf, leaves))), axis=0)


def combination(coefficients: jax.Array, vectors: Any, dtype: Any) -> Any:
    """``Σ_i coefficients_i v_i`` in each leaf's dtype; zero if that is not finite."""

    def of_leaf(leaf):
        v = as_active(leaf)
        own = coefficients
        if len(v.present) < v.k:
            own = coefficients[np.array(v.present, int)]
        total = jnp.einsum("i,i...->...", own, v.array, preferred_element_type=dtype)
        return total.astype(v.array.dtype)

    step = jax.tree.map(of_leaf, vectors, is_leaf=is_active)
    finite = jnp.all(
        jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(step)])
    )
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), step)


def mixed(matrix: jax.Array, vectors: Any) -> Any:
    """``Σ_j matrix_ij v_j``, other vectors of the same span, in each leaf's dtype."""

    def of_leaf(leaf):
        array = as_active(leaf).dense() if is_active(leaf) else leaf
        total = jnp.einsum(
            "ij,j...->i...", matrix, array, preferred_element_type=matrix.dtype
        )
        return total.astype(array.dtype)

    return jax.tree.map(of_leaf, vectors, is_leaf=is_active)
