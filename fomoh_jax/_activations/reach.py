"""The reach of perturbations: rules that follow positions through equations.

A value has *reach* ``{a, b}`` if its element with indices i along axis a and j along b
has a derivative by what is perturbed at position t only where t <= max(i, j). So it
is causal along an axis if it has reach of that axis alone. Attention needs more than
that: its scores have reach {query, key}, and a mask that is triangular takes the keys
away. Masks are known when they depend on no input, and are computed here.

Whatever has no rule reaches everything. That the attention behind a mask is zero rests
on an assumption: products with parameters are smaller than what masks them. See
``LARGEST`` and ``LOWEST``.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from fomoh_jax._activations.graph import type_of
from fomoh_jax._types import Aval

# Axes, and loops as -1 for the outermost, -2 for one in that, and so on: "up to the
# iteration that runs". None is every position.
Reach = frozenset[int] | None
Pairs = frozenset[tuple[int, int]]
NOWHERE: frozenset[int] = frozenset()
NO_PAIRS: Pairs = frozenset()

# An ordinary number is no larger, and a masked one no higher.
LARGEST, LOWEST = 1e5, -5e8
# The most elements of a mask that is looked at: those of 5,792 tokens.
_KNOWN = 2**25


def joined(*reaches: Reach) -> Reach:
    """The reach of several values together."""
    found: frozenset[int] = NOWHERE
    for reach in reaches:
        if reach is None:
            return None
        found |= reach
    return found


def confined(reach: Reach, pairs: Pairs) -> Reach:
    """The reach of something whose derivative vanishes above some diagonals."""
    for row, column in sorted(pairs):
        if reach is not None and column in reach:
            reach = reach - {column} | {row}
    return reach


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """The known facts about a variable.

    Attributes:
      shape: its shape.
      reach: what its derivative depends on.
      known: the value itself, if it depends on no input.
      ordinary: whether it is no mask: see ``LARGEST``.
      zero: axes (row, column) of triangular matrices: it is zero where the index of the
        column is larger.
      low: axes of masked scores: there it is below ``LOWEST``, and at some other place
        of each row it is ordinary.
    """

    shape: tuple[int, ...]
    reach: Reach = NOWHERE
    known: np.ndarray | None = None
    ordinary: bool = False
    zero: Pairs = NO_PAIRS
    low: Pairs = NO_PAIRS

    def expanded(self, shape: Sequence[int]) -> "Value":
        """The value broadcast to the shape of an elementwise equation's result."""
        shape = tuple(shape)
        if self.shape == shape:
            return self
        if self.known is not None:
            return constant(np.broadcast_to(self.known, shape))
        same = {a: a for a, n in enumerate(self.shape) if n == shape[a]}
        # An axis that is repeated has index 0, and so positions up to 0 alone.
        return dataclasses.replace(
            self, shape=shape, zero=moved(self.zero, same), low=moved(self.low, same)
        )

    def is_low(self) -> bool:
        """Whether it is a constant that masks."""
        return self.known is not None and bool(np.all(_is_low(_thin(self.known))))


def constant(array: np.ndarray) -> Value:
    """A value that is known. Of a mask of other types, see what numbers it becomes."""
    few, shape, dtype = _thin(array), array.shape, array.dtype
    kinds = jnp.floating, jnp.integer, jnp.bool_
    floating, *others = (jnp.issubdtype(dtype, kind) for kind in kinds)
    if few.size > _KNOWN or not (floating or any(others)):
        return Value(shape)
    if not floating:
        return Value(shape, known=array)
    low = _is_low(few)
    if dtype.itemsize < 4:  # a short type may not hold what is compared
        few = few.astype(np.float32)
    small, below = np.asarray(np.abs(few) <= LARGEST), few <= LARGEST
    return Value(
        shape,
        known=array,
        ordinary=bool(np.all(small)),
        zero=triangular(np.asarray(few == 0), shape),
        low=masked(low, small, shape) if np.all(below) else NO_PAIRS,
    )


def _thin(array: np.ndarray) -> np.ndarray:
    """An array without what is repeated by broadcasting."""
    few = tuple(slice(None if stride else 1) for stride in array.strides)
    return np.asarray(array[few])


def _computed(function: Callable, operands: Sequence[Value], out: Aval) -> Value | None:
    """A function of what is known, of no more than what is not repeated."""
    if any(x.known is None for x in operands):
        return None
    few = [_thin(np.asarray(x.known)) for x in operands]
    if math.prod(np.broadcast_shapes(*(x.shape for x in few))) > _KNOWN:
        return None
    with np.errstate(all="ignore"):
        array = np.asarray(function(*few)).astype(out.dtype)
    return constant(np.broadcast_to(array, out.shape))


def _is_low(array: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return np.zeros(array.shape, bool)
    if array.dtype.itemsize < 2:  # what is ordinary in eight bits may be its least
        return np.asarray(np.isneginf(array))
    # The least number of a short type masks as well.
    return np.asarray(array <= max(LOWEST, float(jnp.finfo(array.dtype).min)))


def triangular(vanishes: np.ndarray, shape: Sequence[int]) -> Pairs:
    """The pairs of axes above whose diagonal a condition holds.

    Args:
      vanishes: the condition; what is repeated may have length 1.
      shape: with what is repeated.
    """
    found = set()
    pairs = itertools.permutations((a for a, n in enumerate(shape) if n > 1), 2)
    if np.all(vanishes):
        return frozenset(pairs)
    for row, column in pairs if np.any(vanishes) else ():
        others = tuple(a for a in range(len(shape)) if a not in (row, column))
        plane = np.all(vanishes, axis=others)
        plane = plane if row < column else plane.T
        above = np.arange(shape[column]) > np.arange(shape[row])[:, None]
        if np.all(plane | ~above):
            found.add((row, column))
    return frozenset(found)


def masked(hidden: np.ndarray, seen: np.ndarray, shape: Sequence[int]) -> Pairs:
    """The triangles that are hidden where something is seen in each row."""
    pairs = triangular(hidden, shape)
    return frozenset((r, c) for r, c in pairs if np.all(np.any(seen, axis=c)))


def moved(pairs: Pairs, to: Mapping[int, int]) -> Pairs:
    """Pairs of axes that are numbered anew; without those that are gone."""
    return frozenset((to[r], to[c]) for r, c in pairs if r in to and c in to)


def renumbered(reach: Reach, to: Mapping[int, int]) -> Reach:
    """A reach of axes that are numbered anew; everything if one is gone."""
    if reach is None or any(a >= 0 and a not in to for a in reach):
        return None
    return frozenset(to.get(a, a) for a in reach)


# Equations. A rule takes the equation and what is known of its operands.

Rule = Callable[[JaxprEqn, Sequence[Value]], Value]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def apply_rule(eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The :class:`Value` of each result of an equation that calls no program."""
    rule = _RULES.get(eqn.primitive.name)
    shapes = [getattr(v.aval, "shape", ()) for v in eqn.outvars]
    if rule is None:
        reach = joined(*(NOWHERE if x.reach == NOWHERE else None for x in operands))
        return [Value(shape, reach) for shape in shapes]
    found = rule(eqn, operands)
    return [dataclasses.replace(found, shape=shape) for shape in shapes]


# Primitives that keep ordinary numbers ordinary, and those that may not.
_ORDINARY = {
    *("add", "add_any", "sub", "mul", "div", "neg", "abs", "sign", "max", "min"),
    *("exp", "exp2", "expm1", "tanh", "logistic", "erf", "erfc", "sin", "cos", "sqrt"),
    *("rsqrt", "cbrt", "square", "integer_pow", "stop_gradient", "copy", "copy_p"),
    *("convert_element_type", "reduce_precision", "pvary", "sharding_constraint"),
    "name",
}
_ELEMENTWISE = _ORDINARY | {
    *("log", "log1p", "pow", "atan2", "rem", "tan", "sinh", "cosh", "asin", "acos"),
    *("atan", "asinh", "acosh", "atanh", "floor", "ceil", "round", "nextafter"),
    *("erf_inv", "lgamma", "digamma", "is_finite", "real", "imag", "conj", "complex"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "clamp"),
}
_SAME = {
    *("stop_gradient", "copy", "copy_p", "convert_element_type", "reduce_precision"),
    *("pvary", "sharding_constraint", "name"),
}
_NUMPY: dict[str, Callable] = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative},
    **{"max": np.maximum, "min": np.minimum, "stop_gradient": np.asarray},
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal},
    **{"gt": np.greater, "ge": np.greater_equal},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
    **{"not": np.invert, "copy": np.asarray, "convert_element_type": np.asarray},
    **{"pvary": np.asarray, "sharding_constraint": np.asarray},
}


@_rule(*sorted(_ELEMENTWISE))
def _elementwise(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    name, out = eqn.primitive.name, type_of(eqn.outvars[0])
    if name in _NUMPY and (known := _computed(_NUMPY[name], operands, out)):
        return known
    operands = [x.expanded(out.shape) for x in operands]
    first, last = operands[0], operands[-1]
    reach = joined(*(x.reach for x in operands))
    ordinary = name in _ORDINARY and all(x.ordinary for x in operands)
    zero, low = NO_PAIRS, NO_PAIRS
    if name in _SAME:
        zero, low = first.zero, first.low
    elif name == "neg":
        zero = first.zero
    elif name in ("add", "add_any", "sub"):
        zero = first.zero & last.zero
        low = first.low if last.ordinary else low
        if first.ordinary and name != "sub":
            low |= last.low
    elif name == "mul":
        reach = joined(
            confined(first.reach, last.zero), confined(last.reach, first.zero)
        )
        zero = first.zero | last.zero
    elif name == "div":
        reach = joined(first.reach, confined(last.reach, first.zero))
        zero = first.zero
    elif name == "exp":
        reach, zero = confined(reach, first.low), first.low
    elif name == "max":
        ordinary = any(x.ordinary for x in operands) and all(
            x.ordinary or x.is_low() for x in operands
        )
    return Value(out.shape, reach, None, ordinary, zero, low)


def _chosen(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.select([which == k for k in range(len(cases))], cases)


@_rule("select_n")
def _select(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    out = type_of(eqn.outvars[0])
    if known := _computed(_chosen, operands, out):
        return known
    shape = out.shape
    which, *cases = (x.expanded(shape) for x in operands)
    ordinary = all(x.ordinary for x in cases)
    if which.known is None:
        zero = functools.reduce(frozenset.intersection, (x.zero for x in cases))
        reach = joined(*(x.reach for x in cases))
        return Value(shape, reach, None, ordinary, zero)
    chosen = _thin(which.known)
    taken = [np.asarray(chosen == k) for k in range(len(cases))]
    never = [triangular(np.asarray(~some), shape) for some in taken]
    reach = joined(*(confined(x.reach, not_it) for x, not_it in zip(cases, never)))
    zero = functools.reduce(
        frozenset.intersection, (x.zero | not_it for x, not_it in zip(cases, never))
    )
    is_low = [x.is_low() for x in cases]
    low = NO_PAIRS
    if all(x.ordinary or yes for x, yes in zip(cases, is_low)):
        hidden = functools.reduce(
            np.logical_or, (some & yes for some, yes in zip(taken, is_low))
        )
        low = masked(hidden, np.asarray(~hidden), shape)
    return Value(shape, reach, None, ordinary, zero, low)


@_rule("iota")
def _iota(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    if shape[axis] > _KNOWN:
        return Value(shape)
    numbers = np.arange(shape[axis]).astype(eqn.params["dtype"])
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return constant(np.broadcast_to(numbers.reshape(along), shape))


def _rearranged(
    x: Value, to: Mapping[int, int], shape: Sequence[int], known: Callable
) -> Value:
    """A value with other axes, where ``to`` says which is which."""
    if x.known is not None:
        return constant(known(x.known))
    return Value(
        tuple(shape),
        renumbered(x.reach, to),
        None,
        x.ordinary,
        moved(x.zero, to),
        moved(x.low, to),
    )


@_rule("broadcast_in_dim")
def _broadcast(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    x, shape = operands[0], type_of(eqn.outvars[0]).shape
    places = [int(a) for a in eqn.params["broadcast_dimensions"]]
    same = {a: b for a, b in enumerate(places) if x.shape[a] == shape[b]}
    along = [1] * len(shape)
    for a, b in enumerate(places):
        along[b] = x.shape[a]
    repeat = lambda known: np.broadcast_to(known.reshape(along), shape)
    return _rearranged(x, same, shape, repeat)


@_rule("reshape")
def _reshape(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    x, shape = operands[0], type_of(eqn.outvars[0]).shape
    before = lambda shape, axis: (math.prod(shape[:axis]), shape[axis])
    places = {before(shape, b): b for b in range(len(shape))}
    to = {
        a: places[before(x.shape, a)]
        for a in range(len(x.shape))
        if before(x.shape, a) in places
    }
    return _rearranged(x, to, shape, lambda known: known.reshape(shape))


@_rule("transpose")
def _transpose(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    order = [int(a) for a in eqn.params["permutation"]]
    to = {a: b for b, a in enumerate(order)}
    shape = type_of(eqn.outvars[0]).shape
    return _rearranged(operands[0], to, shape, lambda known: known.transpose(order))


@_rule("squeeze")
def _squeeze(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    gone = {int(a) % len(operands[0].shape) for a in eqn.params["dimensions"]}
    to = _without(len(operands[0].shape), gone)
    shape = type_of(eqn.outvars[0]).shape
    return _rearranged(operands[0], to, shape, lambda known: known.reshape(shape))


def _without(ndim: int, gone: Iterable[int]) -> dict[int, int]:
    """The new number of each axis that is left when some are gone."""
    gone = set(gone)
    return {a: i for i, a in enumerate(a for a in range(ndim) if a not in gone)}


@_rule("slice")
def _slice(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    x, starts = operands[0], eqn.params["start_indices"]
    strides = eqn.params["strides"] or [1] * len(starts)
    # Axes that are cut from 0 on with stride 1: each element keeps its index.
    kept = {a: a for a, at in enumerate(zip(starts, strides)) if at == (0, 1)}
    cut = tuple(map(slice, starts, eqn.params["limit_indices"], strides))
    shape = type_of(eqn.outvars[0]).shape
    return dataclasses.replace(
        _rearranged(x, kept, shape, lambda known: known[cut]), low=NO_PAIRS
    )


@_rule("split", "rev", "sort")
def _along_an_axis(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    given = eqn.params
    axes = given.get("dimensions", (given.get("axis", given.get("dimension")),))
    reach = joined(*(x.reach for x in operands))
    ordinary = all(x.ordinary for x in operands)
    return Value((), _off(reach, axes), None, ordinary)


def _off(reach: Reach, axes: Iterable[int]) -> Reach:
    """A reach after something that mixes along axes."""
    return None if reach is None or not reach.isdisjoint(map(int, axes)) else reach


@_rule("stack", "unstack")
def _stack(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    ndim, axis = len(operands[0].shape), int(eqn.params["axis"])
    to = _without(ndim, {axis})
    if eqn.primitive.name == "stack":
        to = {a: a + (a >= axis) for a in range(ndim)}
    reach = renumbered(joined(*(x.reach for x in operands)), to)
    return Value((), reach, None, all(x.ordinary for x in operands))


@_rule("concatenate", "pad", "tile")
def _further_back(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    """Elements keep their index along an axis, or get a larger one."""
    reach = joined(*(x.reach for x in operands))
    forth = [
        a
        for a, (low, _, interior) in enumerate(eqn.params.get("padding_config", ()))
        if low < 0 or interior < 0
    ]
    return Value((), _off(reach, forth), None, all(x.ordinary for x in operands))


@_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    reach = operands[0].reach
    axes = [eqn.params["axis"]] if eqn.params["reverse"] else []
    return Value((), _off(reach, axes))


@_rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
def _reduce(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    x, name = operands[0], eqn.primitive.name
    axes = {int(a) for a in eqn.params["axes"]}
    reach, ordinary = x.reach, x.ordinary and name != "reduce_prod"
    if name == "reduce_max":  # the largest of a row is not a masked one
        rows = frozenset((r, c) for r, c in x.low if c in axes and r not in axes)
        reach, ordinary = confined(reach, rows), ordinary or bool(rows)
    return Value((), renumbered(reach, _without(len(x.shape), axes)), None, ordinary)


@_rule("dot_general")
def _dot(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    (of_first, of_last), batch = eqn.params["dimension_numbers"]
    contracted = [[int(a) for a in axes] for axes in (of_first, of_last)]
    batch = [[int(a) for a in axes] for axes in batch]
    places: list[dict[int, int]] = []  # of the axes of each factor in the result
    count = len(batch[0])
    for x, out, same in zip(operands, contracted, batch):
        free = [a for a in range(len(x.shape)) if a not in (*out, *same)]
        places.append({a: i for i, a in enumerate(same)})
        places[-1] |= {a: count + i for i, a in enumerate(free)}
        count += len(free)
    reaches = []
    for k in range(2):
        # The other factor may be triangular: then no more than that is summed.
        to, other = dict(places[k]), operands[1 - k]
        for own, its in zip(contracted[k], contracted[1 - k]):
            rows = [r for r, c in sorted(other.zero) if c == its]
            kept = [places[1 - k][r] for r in rows if r in places[1 - k]]
            if kept:
                to[own] = kept[0]
        reaches.append(renumbered(operands[k].reach, to))
    either = any(x.ordinary for x in operands) and bool(of_first)
    ordinary = either or all(x.ordinary for x in operands)
    return Value((), joined(*reaches), None, ordinary)


@_rule("gather")
def _gather(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    x, numbers = operands[0], eqn.params["dimension_numbers"]
    ndim = len(type_of(eqn.outvars[0]).shape)
    offsets = [int(a) for a in numbers.offset_dims]
    batch = [a for a in range(ndim) if a not in offsets]
    gone = {*map(int, numbers.collapsed_slice_dims)}
    same = [int(a) for a in numbers.operand_batching_dims]
    sliced = [a for a in range(len(x.shape)) if a not in gone and a not in same]
    sizes = eqn.params["slice_sizes"]
    to = {a: b for a, b in zip(sliced, offsets) if sizes[a] == x.shape[a]}
    for a, i in zip(same, numbers.start_indices_batching_dims):
        to[a] = batch[int(i)]  # the last axis of indices is that of their parts
    return Value((), renumbered(x.reach, to), None, x.ordinary)


@_rule("dynamic_slice")
def _dynamic_slice(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    x, sizes = operands[0], eqn.params["slice_sizes"]
    part = [a for a, n in enumerate(x.shape) if n != sizes[a]]
    return Value((), _off(x.reach, part), None, x.ordinary)


@_rule("conv_general_dilated")
def _convolution(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    x, kernel = operands
    given = eqn.params
    numbers = given["dimension_numbers"]
    to = {int(numbers.lhs_spec[0]): int(numbers.out_spec[0])}  # the batch
    if given["batch_group_count"] != 1:
        to = {}
    for i, (a, b) in enumerate(zip(numbers.lhs_spec[2:], numbers.out_spec[2:])):
        width = kernel.shape[numbers.rhs_spec[2 + i]] - 1
        plain = given["window_strides"][i] == given["lhs_dilation"][i] == 1
        # Element i is computed of i - padding and what follows, as far as the kernel.
        if plain and width * given["rhs_dilation"][i] <= given["padding"][i][0]:
            to[int(a)] = int(b)
    of_kernel = NOWHERE if kernel.reach == NOWHERE else None
    return Value((), joined(renumbered(x.reach, to), of_kernel), None, kernel.ordinary)
