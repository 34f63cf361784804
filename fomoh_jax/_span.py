"""Linear algebra on stacks of vectors that are trees: Gram matrices, combinations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Inexact, PyTree

from fomoh_jax._hyperdual.channels import LeafDirections, as_channel, is_channel
from fomoh_jax._hyperdual.mesh_axes import explicit_sharding


def gram(
    vectors: PyTree[LeafDirections],
    dtype: DTypeLike | None = None,
    after: Array | None = None,
) -> Float[Array, "k k"]:
    """``VᵀV``, accumulated in ``dtype``: by default that of the leaves, or float32.

    Vectors that are deferred are made leaf after leaf, once ``after`` is known.
    """
    if dtype is None:
        leaves = jax.tree.leaves(vectors, is_leaf=is_channel)
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))

    def of_leaf(leaf: LeafDirections, after: Array | None) -> Array:
        return as_channel(leaf).not_before(after).gram(dtype)

    blocks = []
    for leaf in jax.tree.leaves(vectors, is_leaf=is_channel):
        blocks.append(of_leaf(leaf, blocks[-1] if blocks else after))
    return jnp.sum(jnp.stack(blocks), axis=0)


def combination(
    coefficients: Float[Array, " k"], vectors: PyTree[LeafDirections], dtype: DTypeLike
) -> PyTree[Array]:
    """``Σ_i coefficients_i v_i`` in each leaf's dtype; zero if that is not finite.

    Vectors that are deferred are made leaf after leaf.
    """

    def of_leaf(leaf: LeafDirections, after: Array) -> Array:
        return as_channel(leaf).not_before(after).combined(coefficients, dtype)

    leaves, structure = jax.tree.flatten(vectors, is_leaf=is_channel)
    step = []
    for leaf in leaves:
        step.append(of_leaf(leaf, step[-1] if step else coefficients))
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in step]))
    return structure.unflatten([jnp.where(finite, leaf, 0) for leaf in step])


def slopes(
    gradient: PyTree[Array], vectors: PyTree[LeafDirections], dtype: DTypeLike
) -> Float[Array, " k"]:
    """``Vᵀg``, the slope along each vector."""

    def of_leaf(vectors, g):
        v = as_channel(vectors).stacked()
        g = g.astype(v.array.dtype)
        products = jnp.einsum("i...,...->i", v.array, g, preferred_element_type=dtype)
        if len(v.indices) == v.k:
            return products
        return jnp.zeros(v.k, dtype).at[np.array(v.indices, int)].set(products)

    each = jax.tree.map(of_leaf, vectors, gradient, is_leaf=is_channel)
    return jnp.sum(jnp.stack(jax.tree.leaves(each)), axis=0)


def mixed(
    matrix: Float[Array, "m k"], vectors: PyTree[LeafDirections]
) -> PyTree[Inexact[Array, "m ..."]]:
    """``Σ_j matrix_ij v_j``, other vectors of the same span, in each leaf's dtype."""

    def of_leaf(leaf):
        array = as_channel(leaf).stacked().dense()
        total = jnp.einsum(
            "ij,j...->i...", matrix, array, preferred_element_type=matrix.dtype
        )
        return total.astype(array.dtype)

    return jax.tree.map(of_leaf, vectors, is_leaf=is_channel)


def sharded_like(
    leaf: ArrayLike, vectors: Inexact[Array, "k ..."]
) -> Inexact[Array, "k ..."]:
    """Vectors ``[k, *leaf.shape]``, sharded as a leaf that is sharded explicitly.

    (Where the compiler decides, it lets them be born where they are used.)
    """
    if spec := explicit_sharding(leaf):
        return jax.sharding.reshard(vectors, PartitionSpec(None, *spec))
    return vectors
