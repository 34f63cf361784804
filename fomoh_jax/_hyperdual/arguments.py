"""Reading what a caller hands in: primals beside tangents or directions.

Everything is checked here, at the call, so that no rule needs to doubt its operands.
"""

import inspect
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Inexact, PyTree

from fomoh_jax._hyperdual.channels import (
    ZERO,
    Channel,
    Stack,
    as_channel,
    is_channel,
)
from fomoh_jax._hyperdual.deferred import Deferred
from fomoh_jax._hyperdual.low_rank import LowRank
from fomoh_jax._hyperdual.number import is_inexact


def check_primals(fun: Callable, primals: Sequence[PyTree]) -> None:
    """Refuse primals that are no tuple, or not what ``fun`` takes.

    Raises:
      TypeError: naming what was expected and what came.
      ValueError: if they were put on different devices.
    """
    if not isinstance(primals, (tuple, list)):
        raise TypeError(
            "primals must be a tuple or a list with one entry for each argument of "
            f"fun, as in jax.jvp; got {type(primals).__name__}. For a single "
            "argument write (x,)."
        )
    for i, primal in enumerate(primals):
        for path, leaf in jax.tree_util.tree_leaves_with_path(primal):
            check_array(f"primals[{i}]{jax.tree_util.keystr(path)}", leaf)
    check_devices({f"primals[{i}]": x for i, x in enumerate(primals)})
    parameters = signature(fun)
    if parameters is None:
        return
    try:
        parameters.bind(*primals)
    except TypeError as error:
        raise TypeError(
            f"primals has {len(primals)} entries, which does not match the parameters "
            f"{parameters} of fun: {error}."
        ) from None


def check_devices(arguments: dict[str, PyTree]) -> None:
    """Refuse arrays that were put on different devices, which nothing can compute with.

    (JAX refuses them too, in the name of the operands of some product inside. Inside
    ``jax.jit``, which finds them first, it names the arguments.)

    Raises:
      ValueError: naming two of them, and where they are.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(arguments)
    places = {}
    for path, x in leaves:
        if isinstance(x, Tracer) or not getattr(x, "committed", False):
            continue  # where it is is not known, or up to JAX
        name = str(path[0].key) + jax.tree_util.keystr(path[1:])
        places.setdefault(frozenset(x.sharding.device_set), (name, x.sharding))
    if len(places) > 1:
        first, second = itertools.islice(places.values(), 2)
        raise ValueError(
            "all arrays must be on the same devices; got "
            + " and ".join(f"{name} on {where}" for name, where in (first, second))
            + ". Put them there by jax.device_put(x, jax.sharding.NamedSharding(mesh, "
            "spec)), with the same mesh for all: a batch by PartitionSpec('batch'), "
            "and what every device needs by PartitionSpec()."
        )


def signature(fun: Any) -> inspect.Signature | None:
    """The signature of a function itself, whatever it wraps; None if it has none."""
    while hasattr(fun, "__wrapped__") and not hasattr(fun, "__code__"):
        fun = fun.__wrapped__  # jit and its like take what is inside
    try:
        return inspect.signature(fun, follow_wrapped=False)
    except (TypeError, ValueError):  # some builtins have none
        return None


def check_size(name: str, size: Any) -> int:
    """A size as a Python integer.

    Raises:
      TypeError: if it is none, or is traced.
      ValueError: if it is less than 1.
    """
    if isinstance(size, jax.Array):
        raise TypeError(
            f"{name} must be a Python integer, because it is a shape; got an array. "
            f'Under optax.inject_hyperparams, name it in static_args="{name}".'
        )
    try:
        size = operator.index(size)
    except TypeError:
        raise TypeError(f"{name} must be a Python integer; got {size!r}.") from None
    if size < 1:
        raise ValueError(f"{name} must be at least 1; got {size}.")
    return size


def check_key(key: object) -> None:
    """Refuse what is not one PRNG key, typed or legacy.

    Raises:
      TypeError: naming what came.
    """
    got = repr(key)
    if isinstance(key, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == (0 if typed else 1) and (typed or key.dtype == np.uint32):
            return
        got = f"shape {list(key.shape)} and dtype {key.dtype}"
    raise TypeError(f"key must be one PRNG key, such as jax.random.key(0); got {got}.")


def check_array(name: str, leaf: object) -> None:
    """Refuse a leaf that is no array, as one of a model may be.

    Raises:
      TypeError: saying how the arrays of a model are taken apart from the rest.
    """
    number = isinstance(leaf, (bool, int, float, complex))
    if not number and not hasattr(leaf, "dtype") and not hasattr(leaf, "__jax_array__"):
        raise TypeError(
            f"{name} must be an array; got {leaf!r}. Differentiate the arrays of a "
            "model alone: with equinox, params, static = equinox.partition(model, "
            "equinox.is_inexact_array), and inside the function "
            "equinox.combine(params, static); with flax.nnx, graphdef, params = "
            "nnx.split(model), and nnx.merge(graphdef, params)."
        )


def read_directions(
    primals: Sequence[PyTree], directions: Sequence[PyTree]
) -> tuple[int, list[Channel]]:
    """Directions as one channel for each leaf of the primals.

    Args:
      primals: the arguments of the function.
      directions: a tuple like ``primals``; each leaf has a leading axis ``k``, or is
        a :class:`Stack` or a :class:`Deferred`. ``None`` holds an argument, or any part
        of one, fixed.

    Returns:
      ``k`` and the channels, in the order of the leaves.

    Raises:
      TypeError: if the structure or a dtype does not match.
      ValueError: if a shape does not match, if what is said to be present cannot be,
        or if nothing says what ``k`` is.
    """
    sizes, channels = {}, []
    for path, primal, leaf in _pair("directions", primals, directions, is_channel):
        channel = ZERO
        if leaf is not None:
            sizes[path], channel = _read_leaf(path, primal, leaf)
        channels.append(channel)
    if not sizes:
        raise ValueError(
            "directions holds no array, so every argument is held fixed and the number "
            "of directions is unknown. Give at least one leaf a direction of shape "
            "[k, *leaf.shape]."
        )
    first, k = next(iter(sizes.items()))
    for path, size in sizes.items():
        if size != k:
            raise ValueError(
                f"directions must agree on the number of directions k: {first} has {k} "
                f"directions, {path} has {size}."
            )
    return k, channels


def _read_leaf(
    path: str, primal: ArrayLike, leaf: Channel | ArrayLike
) -> tuple[int, Channel]:
    """The number of directions of a leaf, and the directions."""
    if isinstance(leaf, Stack):
        return _read_stack(path, primal, leaf)
    shape = _array_type(leaf).shape
    if len(shape) != jnp.ndim(primal) + 1:
        raise ValueError(_wrong_shape(path, primal, leaf, "k, "))
    directions = _checked(path, primal, leaf, shape[:1], "k, ")
    return shape[0], ZERO if directions is None else as_channel(directions)


def _read_stack(path: str, primal: ArrayLike, stack: Stack) -> tuple[int, Channel]:
    _check_stack(path, stack)
    k, present = stack.k, stack.indices
    lead = (len(present),)
    array = _checked(f"{path}.array", primal, stack.array, lead, "len(present), ")
    if array is None or not present:
        return k, ZERO
    return k, Stack(array) if len(present) == k else Stack(array, 0, present, k)


def _check_stack(path: str, stack: Stack) -> None:
    """Refuse a stack of directions whose static part makes no sense."""
    present, k = stack.present, stack.size
    if stack.axis != 0:
        raise ValueError(f"{path}.axis must be 0 for directions; got {stack.axis}.")
    if present is None and k is None:
        return
    if type(k) is not int:
        raise TypeError(f"{path}.size must be a Python integer; got {k!r}.")
    if not (isinstance(present, tuple) and all(type(i) is int for i in present)):
        raise TypeError(
            f"{path}.present must be a tuple of Python integers, because it is static; "
            f"got {present!r}."
        )
    ascending = all(a < b for a, b in itertools.pairwise(present))
    if not ascending or any(not 0 <= i < k for i in present):
        raise ValueError(
            f"{path}.present must be ascending and within 0 to size - 1 = {k - 1}; got "
            f"{present}."
        )


def read_tangents(
    primals: Sequence[PyTree],
    tangents1: Sequence[PyTree],
    tangents2: Sequence[PyTree],
) -> list[Channel]:
    """Two tangents, each as in ``jax.jvp``, as stacks of two.

    Raises:
      TypeError: if the structure or a dtype does not match.
      ValueError: if a shape does not match.
    """
    firsts = _pair("tangents1", primals, tangents1)
    seconds = _pair("tangents2", primals, tangents2)
    return [
        _two(_checked(path1, primal, t1), _checked(path2, primal, t2))
        for (path1, primal, t1), (path2, _, t2) in zip(firsts, seconds)
    ]


def read_vector(
    name: str, primals: Sequence[PyTree], vector: Sequence[PyTree]
) -> list[Array | None]:
    """One vector like the primals, as an array for each leaf; None where it is fixed.

    Args:
      name: what an error calls it.
      primals: the arguments of the function.
      vector: a tuple like ``primals``; ``None`` for what is held fixed.

    Raises:
      TypeError: if the structure or a dtype does not match.
      ValueError: if a shape does not match.
    """
    leaves = _pair(name, primals, vector)
    return [_checked(path, primal, tangent) for path, primal, tangent in leaves]


def _two(a: Inexact[Array, "*s"] | None, b: Inexact[Array, "*s"] | None) -> Channel:
    """Two tangents of one primal, ``None`` for a zero, as a stack."""
    given = [x for x in (a, b) if x is not None]
    if not given:
        return ZERO
    zeros = jnp.zeros_like(given[0])
    return Stack(jnp.stack([zeros if x is None else x for x in (a, b)]))


def _pair(
    name: str,
    primals: Sequence[PyTree],
    tree: PyTree,
    is_leaf: Callable[[object], bool] = lambda x: False,
) -> list[tuple[str, Any, Any]]:
    """``(path, primal, tangent or None)`` for each leaf of the primals."""
    if not isinstance(tree, (tuple, list)):
        raise TypeError(
            f"{name} must be a tuple or a list like primals, with one entry for each "
            f"of the {len(primals)} arguments; got {type(tree).__name__}."
        )
    if len(tree) != len(primals):
        raise TypeError(
            f"{name} must have one entry for each argument: primals has "
            f"{len(primals)}, {name} has {len(tree)}. Write None for an "
            "argument that is held fixed."
        )
    pairs = []
    for index, (primal, entry) in enumerate(zip(primals, tree)):
        try:
            spread = jax.tree.map(
                _spread, entry, primal, is_leaf=lambda x: x is None or is_leaf(x)
            )
        except ValueError:
            raise TypeError(
                f"{name}[{index}] must have the structure of primals[{index}], with "
                f"None for what is held fixed: expected {jax.tree.structure(primal)}, "
                f"got {jax.tree.structure(entry)}."
            ) from None
        leaves = jax.tree_util.tree_leaves_with_path(primal)
        for (path, leaf), tangent in zip(leaves, _flat(spread, is_leaf), strict=True):
            pairs.append(
                (f"{name}[{index}]{jax.tree_util.keystr(path)}", leaf, tangent)
            )
    return pairs


class _Held:
    """The leaves that a ``None`` stands for, all of them held fixed."""

    def __init__(self, count: int):
        self.count = count


def _spread(tangent: PyTree, subtree: PyTree) -> PyTree:
    if tangent is None:
        return _Held(len(jax.tree.leaves(subtree)))
    if not jax.tree_util.all_leaves([subtree]):
        raise ValueError("an array stands where primals has a tree")
    return tangent


def _flat(spread: PyTree, is_leaf: Callable[[object], bool]) -> list[Any]:
    leaves: list[Any] = []
    for leaf in jax.tree.leaves(spread, is_leaf=is_leaf):
        leaves.extend([None] * leaf.count if isinstance(leaf, _Held) else [leaf])
    return leaves


def _checked(
    path: str,
    primal: ArrayLike,
    tangent: Any,
    lead: tuple[int, ...] = (),
    symbol: str = "",
) -> Any:
    """One leaf of tangents, as it is or as an array; None if it cannot vary.

    ``symbol`` is what an error calls the leading axis.
    """
    if tangent is None:
        return None
    dtype = _array_type(tangent).dtype
    if dtype == jax.dtypes.float0:
        if is_inexact(primal):
            raise TypeError(f"{path} has dtype float0, but its primal can vary.")
        return None
    if not is_inexact(primal):
        raise TypeError(
            f"{path} must be None or have dtype float0, because its primal has dtype "
            f"{jnp.result_type(primal)} and so no derivative; got dtype {dtype}."
        )
    if dtype != jnp.result_type(primal):
        raise TypeError(
            f"{path} must have the dtype of its primal, {jnp.result_type(primal)}; got "
            f"{dtype}. Cast it with .astype."
        )
    if _array_type(tangent).shape != (*lead, *jnp.shape(primal)):
        raise ValueError(_wrong_shape(path, primal, tangent, symbol))
    if isinstance(tangent, Deferred):
        made = jax.eval_shape(tangent.make, tangent.seed)
        if (made.shape, made.dtype) != (tangent.shape, tangent.dtype):
            raise ValueError(
                f"{path}.make must return an array of the shape and dtype that are "
                f"declared, {list(tangent.shape)} and {tangent.dtype}; got "
                f"{list(made.shape)} and {made.dtype}."
            )
    return tangent if is_channel(tangent) else jnp.asarray(tangent)


def _array_type(tangent: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype, also of what is yet to be made."""
    if isinstance(tangent, (Deferred, LowRank)):
        return jax.ShapeDtypeStruct(tangent.shape, tangent.dtype)
    return jax.ShapeDtypeStruct(jnp.shape(tangent), jnp.result_type(tangent))


def _wrong_shape(path: str, primal: ArrayLike, tangent: Any, symbol: str) -> str:
    expected = ", ".join(map(str, jnp.shape(primal)))
    return (
        f"{path} must have shape [{symbol}{expected}], like its primal"
        f"{' behind a leading axis for the directions' if symbol else ''}; got "
        f"{list(_array_type(tangent).shape)}."
    )
