"""The curvature by forward passes, which carry its entries through the program."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, PyTree

from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.evaluation import coefficients_of
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.loops import (
    chunks_joined,
    equal_chunks,
    map_slices,
    overlapping_chunks,
)
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.pair_forms import FirstOrder, Pairs
from fomoh_jax._hyperdual.part_forms import Offsets
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._types import Leaf


def forward(chunk_size: int | None = None) -> Plan:
    """One forward pass, which carries every pair of directions.

    It takes every function that ``jax.jvp`` can differentiate twice. Through a
    ``lax.scan`` over layers its temporary memory does not grow with their number.

    Args:
      chunk_size: bound on memory. That many offsets ``j - i`` of the pairs are computed
        at a time, one after the other, so that at most ``chunk_size * k`` second-order
        coefficients of an intermediate exist at once; of a product with the Hessian,
        that many elements at a time. By default all of them.

    Returns:
      A plan.

    Raises:
      TypeError: if ``chunk_size`` is not a Python integer.
      ValueError: if it is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import hessian, plans
      >>> f = lambda x: jnp.sum(x ** 3)
      >>> print(hessian(f, plan=plans.forward(chunk_size=1))(jnp.array([1.0, 2.0])))
      [[ 6.  0.]
       [ 0. 12.]]
    """
    return Forward(None if chunk_size is None else check_size("chunk_size", chunk_size))


@dataclasses.dataclass(frozen=True)
class Forward(Plan):
    """The plan that :func:`forward` returns."""

    chunk_size: int | None = None

    def curvatures(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        if self.chunk_size is None or self.chunk_size >= k:
            return _at_once(jaxpr, k, args, wanted)
        return _in_chunks(jaxpr, k, args, wanted, self.chunk_size)

    def products(
        self,
        columns: Callable,
        slopes: Callable,
        primals: PyTree,
        point: Float[Array, " D"],
    ) -> jax.Array:
        return applied_to_basis(columns, primals, point, self.chunk_size)


def applied_to_basis(
    function: Callable,
    primals: PyTree,
    point: Float[Array, " D"],
    chunk_size: int | None,
) -> jax.Array:
    """``function(primals, basis)``, ``[…, D]``, for a part of the basis at a time."""
    size = point.size
    if chunk_size is None or check_size("chunk_size", chunk_size) >= size:
        return function(primals, jnp.eye(size, dtype=point.dtype))
    return applied_to_part(function, primals, point, 0, size, chunk_size)[..., :size]


def applied_to_part(
    function: Callable,
    primals: PyTree,
    point: jax.Array,
    first: int | Array,
    length: int,
    chunk_size: int | None,
) -> jax.Array:
    """``function(primals, basis)`` of at least ``length`` vectors from ``first`` on."""
    count, width = equal_chunks(length, chunk_size)

    def chunk(start):
        # As in a model, each chunk finds what depends on the primals anew: kept for the
        # next, it would be that of every layer.
        again, start = lax.optimization_barrier((primals, start))
        # Past the end the directions are zero.
        places = start + jnp.arange(width)
        return function(again, jax.nn.one_hot(places, point.size, dtype=point.dtype))

    parts = map_slices(chunk, first + jnp.arange(count) * width)
    parts = jnp.moveaxis(parts, 0, -2)
    return parts.reshape(*parts.shape[:-2], count * width)


def _at_once(
    jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
) -> tuple[list[HyperDual], list[Leaf]]:
    pairs = Pairs(k)
    numbers = interpret(jaxpr, pairs, args)
    places = np.zeros((k, k), np.int32)
    i, j = pairs.pairs
    places[i, j] = places[j, i] = np.arange(pairs.q)
    seconds = coefficients_of(numbers[:wanted], "seconds", pairs.q)
    return numbers, [x[places] for x in seconds]


def _in_chunks(
    jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int, chunk_size: int
) -> tuple[list[HyperDual], list[Leaf]]:
    size, starts = overlapping_chunks(k // 2 + 1, chunk_size)

    def chunk(start):
        form = Offsets(k, size, start)
        # Each chunk finds its own tangents: kept for the next, they would be those of
        # every layer.
        again, _ = lax.optimization_barrier((args, start))
        numbers = interpret(jaxpr, form, again)[:wanted]
        slopes = coefficients_of(numbers, "tangents", k)
        return slopes, coefficients_of(numbers, "seconds", form.q)

    slopes, seconds = map_slices(chunk, jnp.asarray(starts))
    values = interpret(jaxpr, FirstOrder(k), [HyperDual(x.primal) for x in args])
    outs = [
        HyperDual(value.primal, Stack(slope[0])) for value, slope in zip(values, slopes)
    ]
    places = places_in_chunks(k, size, starts)
    tables = [chunks_joined(x)[places] for x in seconds]
    return [*outs, *values[wanted:]], tables


def places_in_chunks(k: int, size: int, starts: np.ndarray) -> np.ndarray:
    """``[k, k]``, where each pair is: in the first chunk that has its offset."""
    row, column = np.triu_indices(k)
    ahead = column - row <= k // 2
    offset = np.where(ahead, column - row, k - column + row)
    owner = np.minimum(offset // size, len(starts) - 1)
    places = np.zeros((k, k), np.int32)
    places[row, column] = places[column, row] = (
        owner * size * k + (offset - starts[owner]) * k + np.where(ahead, row, column)
    )
    return places
