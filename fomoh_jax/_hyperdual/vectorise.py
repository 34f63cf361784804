"""A function of arrays mapped over stacks of them."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def vectorise(
    fn: Callable, in_axes: Sequence[int | None], out_axes: int | list[int]
) -> Callable:
    """``jax.vmap``, or a loop where JAX has no batching rule for what is inside."""

    def vectorised(*operands):
        try:
            return jax.vmap(fn, in_axes, out_axes)(*operands)
        except NotImplementedError:
            return _one_by_one(fn, in_axes, out_axes, operands)

    return vectorised


def _one_by_one(
    fn: Callable,
    in_axes: Sequence[int | None],
    out_axes: int | list[int],
    operands: Sequence[Array],
) -> Array | list[Array]:
    axes = {i: axis for i, axis in enumerate(in_axes) if axis is not None}
    slices = [jnp.moveaxis(operands[i], axis, 0) for i, axis in axes.items()]

    def step(slices):
        full = list(operands)
        for i, x in zip(axes, slices):
            full[i] = x
        return fn(*full)

    results = lax.map(step, slices)
    if isinstance(out_axes, int):
        return jnp.moveaxis(results, 0, out_axes)
    return [jnp.moveaxis(x, 0, axis) for x, axis in zip(results, out_axes)]
