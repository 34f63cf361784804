"""Functions along the standard basis of their arguments, for all operators."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from fomoh_jax._hyperdual.channels import Channel, Stack
from fomoh_jax._hyperdual.evaluation import coefficients_of, evaluate, primals_of
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.local import unit_vectors
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._varied import Varied


def along_basis(
    name: str, fun: Callable, form: Form, varied: Varied, has_aux: bool
) -> tuple[PyTree[HyperDual], PyTree[Array]]:
    """The outputs of ``fun`` as numbers whose directions are the elements that vary.

    Returns:
      ``(out, aux)``, with a number for each output; ``aux`` is ``None`` without
      ``has_aux``.
    """
    if form.is_of_each_alone:
        channels = unit_vectors(varied.leaves, varied.size // 2)
    else:
        channels = list(map(Stack, standard_basis(varied)))
    local = form.is_of_each_alone
    return along_directions(name, fun, form, varied, channels, has_aux, inline=local)


def along_directions(
    name: str,
    fun: Callable,
    form: Form,
    varied: Varied,
    channels: Sequence[Channel],
    has_aux: bool,
    *,
    inline: bool = False,
) -> tuple[PyTree[HyperDual], PyTree[Array]]:
    """Like :func:`along_basis`, along other directions: a channel for each leaf.

    With ``inline``, indices are known, as local channels need them.
    """
    out, aux = evaluate(fun, form, varied.args, channels, has_aux, inline=inline)
    check_outputs(name, primals_of(out))
    return out, primals_of(aux)


def trace_in(out: PyTree[HyperDual]) -> PyTree[Array]:
    """The only second-order coefficient of each number."""
    return jax.tree.map(lambda x: x[0], coefficients_of(out, "seconds", 1))


def gradient_in(
    out: PyTree[Shaped[Array, "D ..."]], varied: Varied
) -> PyTree[PyTree[Array]]:
    """Slopes along the standard basis in the structure of a derivative.

    Of one real number it is ``jax.grad``'s, in the dtype of the arguments; else
    ``jax.jacfwd``'s, in that of the outputs.
    """
    leaves = jax.tree.leaves(out)
    of_one = jax.tree.structure(out) == jax.tree.structure(0) and leaves[0].ndim == 1
    return jax.tree.map(
        lambda x: varied.pieces(jnp.moveaxis(x, 0, -1), as_argument=of_one), out
    )


def check_outputs(name: str, outputs: PyTree[Array]) -> None:
    """Refuse a function that returns integers.

    Raises:
      TypeError: naming the output.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{name} needs a function whose outputs are real or complex "
                f"floating-point numbers; its output{jax.tree_util.keystr(path)} has "
                f"dtype {leaf.dtype}."
            )


def standard_basis(varied: Varied) -> list[Float[Array, "{varied.size} ..."]]:
    """One direction for each coordinate of the leaves together."""
    leaves, total = varied.leaves, varied.size
    offsets = np.cumsum([0, *map(jnp.size, leaves)])

    def directions(leaf: ArrayLike, offset: int) -> Array:
        dtype, size = jnp.result_type(leaf), jnp.size(leaf)
        if jax.typeof(leaf).weak_type:  # as of a Python number; an array would lose it
            basis = jnp.where(jnp.eye(total, size, -offset, dtype=bool), 1.0, 0.0)
        else:
            basis = jnp.eye(total, size, -offset, dtype=dtype)
        return basis.reshape(total, *jnp.shape(leaf))

    return [directions(leaf, int(offset)) for leaf, offset in zip(leaves, offsets)]
