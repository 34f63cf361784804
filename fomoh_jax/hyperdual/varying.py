"""Inside a ``jax.shard_map``: arrays that differ from device to device, and others.

JAX keeps in the type of an array along which axes of the mesh it varies, and most
equations take operands that vary along the same. Directions may vary where what they
are directions of does not, and the other way round.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax
from jax import lax


def in_shard_map() -> bool:
    """Whether there are axes of a mesh along which an array can vary."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def varies_along(tree: Any) -> frozenset[str]:
    """The axes along which any leaf varies."""
    return frozenset().union(*map(_axes, map(jax.typeof, jax.tree.leaves(tree))))


def varying_alike(tree: Any, axes: Collection[str] = ()) -> Any:
    """The tree with each leaf varying along ``axes``, and all that any leaf does."""
    every = varies_along(tree).union(axes)

    def cast(x: Any) -> Any:
        missing = every - varies_along(x)
        return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(cast, tree) if every else tree


def varying_as_traced(types: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """The operands of an equation that was traced on those types.

    What one of them varies along, more than it did then, all of them do.
    """
    traced = list(map(_axes, types))
    more = frozenset().union(*(varies_along(x) - t for x, t in zip(operands, traced)))
    return [varying_alike(x, t | more) for x, t in zip(operands, traced)]


def _axes(abstract: Any) -> frozenset[str]:
    # References and tokens have none.
    manual = getattr(abstract, "mat", None)
    return manual.varying if manual is not None else frozenset()
