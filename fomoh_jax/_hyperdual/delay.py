"""Seeds that XLA cannot use before something else is computed.

XLA computes what depends on nothing as early as it likes, and so all of it at once:
random directions of every layer before the first layer. A seed that depends on a number
of the program, in a way that XLA cannot see through, waits for it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Num, PyTree

from fomoh_jax._hyperdual.mesh_axes import explicit_sharding


def again(x: ArrayLike) -> ArrayLike:
    """A key that may be used although it was before, as jax_debug_key_reuse asks."""
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return jax.random.clone(x) if is_key else x


def delayed(seed: PyTree, array: Array) -> PyTree:
    """A seed whose keys, and other integers, are known after an array is."""
    never = _never(_part(array))
    return jax.tree.map(lambda x: _delayed(x, never), seed)


def after(tree: PyTree, array: Array) -> PyTree:
    """Arrays of any dtype that XLA takes to be known after another array is.

    To XLA, what is computed from them is not the same as what is computed from the tree
    itself, and so is not kept from there.
    """
    never = _never(_part(array))
    return jax.tree.map(lambda x: _after(x, never), tree)


def _after(x: Array, never: Bool[Array, ""]) -> Array:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x + never.astype(x.dtype)
    return x ^ never if x.dtype == jnp.bool_ else _delayed(x, never)


def _part(x: Array) -> Num[Array, ""]:
    """A number that is known once the array is."""
    x = lax.stop_gradient(x)
    if explicit_sharding(x):
        return jnp.sum(x)  # an element of what is sharded by hand cannot be taken
    return x[(0,) * jnp.ndim(x)]


@jax.custom_batching.custom_vmap
def _never(x: Num[Array, "*batch"]) -> Bool[Array, "*batch"]:
    """False, as XLA does not know: NaN is the number that does not equal itself.

    (Of a barrier, its scheduler on the CPU knows nothing.)
    """
    return (x != x) & (x == x)


@_never.def_vmap
def _never_of_any(
    size: int, batched: list[bool], x: Num[Array, "*batch"]
) -> tuple[Bool[Array, ""], bool]:
    # A key stays one key: some generators make other numbers of a batch of them.
    del size, batched
    return jnp.any(_never(x)), False


def _delayed(x: ArrayLike, never: Bool[Array, ""]) -> Array:
    """``x``, as far as XLA can tell not before ``never`` is known."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(x)
        impl = jax.random.key_impl(x)
        return jax.random.wrap_key_data(data + never.astype(data.dtype), impl=impl)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x + never.astype(x.dtype)
    return x
