"""Linear operations on local coefficients: the slots move, and so does the table."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from fomoh_jax._hyperdual.channels import ZERO, Channel
from fomoh_jax._hyperdual.descriptions import Alone
from fomoh_jax._hyperdual.linear_operations import way
from fomoh_jax._hyperdual.local import Local
from fomoh_jax._hyperdual.parts import Part
from fomoh_jax._hyperdual.slot_tables import is_ascending, rows_of, same_along
from fomoh_jax._hyperdual.vectorise import vectorise
from fomoh_jax._types import Leaf


def _mapped(function: Alone, array: Array) -> list[Array]:
    """The results for each slot, along a leading axis."""
    return vectorise(function, [0], 0)(array)


@way(
    Local,
    *("add_any", "complex", "conj", "convert_element_type", "copy"),
    *("copy_p", "imag", "name", "neg", "real", "reduce_precision", "sub"),
)
def _elementwise(x: Local, function: Alone) -> list[Channel]:
    """Each element of the result depends on that element of the operand."""

    def part(array: Array, table: np.ndarray) -> Part:
        (out,) = _mapped(function, array)
        if out.shape != table.shape:  # a scalar, or a dimension of size one
            ones = (1,) * (out.ndim - table.ndim)
            table = table.reshape(len(table), *ones, *table.shape[1:])
        return out, np.broadcast_to(table, out.shape)

    return [x._with(part(*pair) for pair in x.parts)]


@way(
    Local,
    *("broadcast_in_dim", "concatenate", "dynamic_slice", "dynamic_update_slice"),
    *("gather", "pad", "reshape", "rev", "slice", "split", "squeeze", "stack", "tile"),
    *("transpose", "unstack"),
)
def _moved(x: Local, function: Alone) -> list[Channel] | None:
    """Each element of the results is one of the operand's, or none."""
    if not function.is_known:
        return None
    size = math.prod(x.shape)
    # Elements of the other operands get the number 0, which stands for none.
    places = _of_integers(function, np.arange(1, size + 1).reshape(x.shape))
    results: list[list[Part]] = [[] for _ in places]
    for array, table in x.parts:
        flat = table.reshape(len(table), size)
        flat = np.pad(flat, ((0, 0), (1, 0)), constant_values=-1)
        for parts, out, place in zip(results, _mapped(function, array), places):
            parts.append((out, flat[:, place]))
    return [x.made_of(parts) for parts in results]


def _of_integers(function: Alone, x: np.ndarray) -> list[np.ndarray]:
    """The results for integers that are known."""
    joint, x = function.joint, x.astype(np.int32)
    operands = function.operands(x, lambda a: np.zeros(jnp.shape(a), np.int32))
    in_numpy = _IN_NUMPY.get(joint.name)
    if in_numpy is not None:
        return [in_numpy(joint.params, *operands)]
    with jax.ensure_compile_time_eval():
        return list(map(np.asarray, joint(*map(jnp.asarray, operands))))


def _broadcast(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    shape = params["shape"]
    new = set(range(len(shape))) - set(params["broadcast_dimensions"])
    return np.broadcast_to(np.expand_dims(x, tuple(sorted(new))), shape)


def _sliced(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * x.ndim
    return x[
        tuple(map(slice, params["start_indices"], params["limit_indices"], strides))
    ]


# The most frequent operations, written in NumPy so that nothing need be compiled.
_IN_NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "slice": _sliced,
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
}


@way(Local, "scatter")
def _scattered(x: Local, function: Alone) -> list[Channel] | None:
    """Updates are moved where each goes to a place of its own."""
    operand, *_ = function.joint.places
    if not function.is_known:
        return None
    if function.place != operand:
        (hits,) = _of_integers(function, np.ones(x.shape))
        if np.max(hits, initial=0) > 1 or np.sum(hits) < math.prod(x.shape):
            return None
    return _moved(x, function)


@way(Local, "scatter-add", "scatter_add", "scatter-sub")
def _scatter_added(x: Local, function: Alone) -> list[Channel] | None:
    """A place has a slot for each update that is added to it."""
    joint = function.joint
    operand, indices, updates = joint.operands
    if function.place == joint.places[0]:
        return [x]
    if not function.is_known:
        return None
    targets = _targets(operand, indices, updates, joint.params).reshape(-1)
    ranks = _ranks(targets)
    kept = targets > 0
    most, size = int(np.max(ranks[kept], initial=-1)) + 1, jnp.size(operand)
    if not x.is_summed_apart(most, size):
        return None
    # Numbered from 1 on; 0 stands for none.
    sources = np.zeros((most, size), np.int32)
    sources[ranks[kept], targets[kept] - 1] = 1 + np.flatnonzero(kept)

    sign = -1 if joint.name == "scatter-sub" else 1

    def part(array: Array, table: np.ndarray) -> Part:
        shape = (len(table) * most, *jnp.shape(operand))
        array = jnp.pad(array.reshape(len(table), -1), ((0, 0), (1, 0)))
        table = np.pad(
            table.reshape(len(table), -1), ((0, 0), (1, 0)), constant_values=-1
        )
        moved = sign * array.at[:, sources].get(mode="promise_in_bounds")
        return moved.reshape(shape), table[:, sources].reshape(shape)

    return [x.made_of(part(*pair) for pair in x.parts)]


def _targets(
    operand: Leaf, indices: Leaf, updates: Leaf, params: dict[str, Any]
) -> np.ndarray:
    """The place of the operand, numbered from 1 on, to which each update goes, or 0."""
    numbers: lax.ScatterDimensionNumbers = params["dimension_numbers"]
    single = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = iter(numbers.update_window_dims)
    sizes = [
        1 if i in single else updates.shape[next(windows)] for i in range(operand.ndim)
    ]
    with jax.ensure_compile_time_eval():
        places = jnp.arange(1, operand.size + 1, dtype=np.int32)
        return np.asarray(
            lax.gather(
                places.reshape(operand.shape),
                indices,
                lax.GatherDimensionNumbers(
                    offset_dims=tuple(numbers.update_window_dims),
                    collapsed_slice_dims=tuple(numbers.inserted_window_dims),
                    start_index_map=tuple(numbers.scatter_dims_to_operand_dims),
                    operand_batching_dims=tuple(numbers.operand_batching_dims),
                    start_indices_batching_dims=tuple(
                        numbers.scatter_indices_batching_dims
                    ),
                ),
                sizes,
                mode=params["mode"],
                fill_value=0,
            )
        )


def _ranks(values: np.ndarray) -> np.ndarray:
    """The number of equal values that come before each."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(values)) - np.searchsorted(ascending, ascending)
    return ranks


@way(Local, "optimization_barrier")
def _ordered(x: Local, function: Alone) -> list[Channel]:
    """Each result is an operand; channels are computed from primals, which wait."""
    return [x if i == function.place else ZERO for i in function.joint.places]


@way(Local, "select_n")
def _chosen(x: Local, function: Alone) -> list[Channel] | None:
    """A predicate that is known moves elements; any other one scales them."""
    if function.is_known:
        return _moved(x, function)
    return _elementwise(x, function)


@way(Local, "reduce_sum")
def _summed(x: Local, function: Alone) -> list[Channel] | None:
    """A sum over axes: of the slots, where they belong to the same; else more slots."""
    axes = [int(axis) + 1 for axis in function.joint.params["axes"]]

    def part(array: Array, table: np.ndarray) -> Part:
        apart = [axis for axis in axes if not same_along(table, [axis])]
        together = tuple(axis for axis in axes if axis not in apart)
        array = jnp.sum(array, together, keepdims=True)
        for axis in together:
            table = np.take(table, [0], axis)
        kept = [i for i in range(1, table.ndim) if i not in axes]
        # The slots before or behind what becomes slots, as they are in order.
        rest = [*together, *kept]
        orders = [0, *apart, *rest], [*apart, 0, *rest]
        shape = [table.shape[i] for i in kept]
        tables = [table.transpose(order).reshape(-1, *shape) for order in orders]
        best = int(is_ascending(tables[1]) and not is_ascending(tables[0]))
        return array.transpose(orders[best]).reshape(-1, *shape), tables[best]

    parts = [part(*pair) for pair in x.parts]
    slots = sum(len(table) for _, table in parts)
    in_rows = all(rows_of(table) is not None for _, table in parts)
    # What will be stored is so in one go if each slot is of one coefficient.
    return [x.made_of(parts)] if in_rows or slots <= (x.most or slots) else None


@way(
    Local,
    "cumsum",
    *(f"linearized {name}" for name in ("cummax", "cummin", "sort", "top_k")),
    *(f"linearized {name}" for name in ("reduce_max", "reduce_min")),
)
def _mixed(x: Local, function: Alone) -> list[Channel] | None:
    """Each element of the results depends on all of the operand's along some axes."""
    params = function.joint.params
    last = len(x.shape) - 1
    dims = params.get("axes", [params.get("axis", params.get("dimension", last))])
    axes = [int(dim) % len(x.shape) + 1 for dim in dims]
    parts = x.gathered(axes)
    if parts is None:
        return None
    results: list[list[Part]] = []
    for array, table in parts:
        for axis in axes:
            table = np.take(table, [0], axis)
        outs = _mapped(function, array)
        if outs[0].ndim < array.ndim:
            table = np.squeeze(table, tuple(axes))
        results.append([(out, np.broadcast_to(table, out.shape)) for out in outs])
    return [x.made_of(parts) for parts in zip(*results)]
