"""What the type of an array says of the axes of a mesh.

Inside a ``jax.shard_map`` arrays differ from device to device, or do not. JAX keeps in
the type of an array along which axes of the mesh it varies, and most equations take
operands that vary along the same. Directions may vary where what they are directions of
does not, and the other way round.

On a mesh with explicit axes, the type says how the array is sharded, and most equations
take operands that are sharded alike.
"""

from collections.abc import Collection, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ref import AbstractRef
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, PyTree

from fomoh_jax._compat import manual_axes, open_jaxpr, programs_in
from fomoh_jax._types import Aval, Program

T = TypeVar("T")

# Operations that name an axis, and exchange nothing over it.
_STAY_ON_THE_DEVICE = {"axis_index", "pbroadcast", "pcast", "preduced", "pvary"}


def explicit_sharding(x: ArrayLike) -> PartitionSpec | None:
    """How an array is sharded over explicit axes; None if it is not."""
    spec = jax.typeof(x).sharding.spec
    return spec if any(axis is not None for axis in spec) else None


def concatenated(first: Array, second: Array) -> Array:
    """Two arrays, one behind the other; both are sharded as the one that is."""
    specs = [explicit_sharding(x) for x in (first, second)]
    if spec := specs[0] or specs[1]:
        first, second = (jax.sharding.reshard(x, spec) for x in (first, second))
    return jnp.concatenate([first, second])


def in_shard_map() -> bool:
    """Whether there are axes of a mesh along which an array can vary."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def varies_along(tree: PyTree) -> frozenset[str]:
    """The axes along which any leaf varies."""
    return frozenset().union(*map(_axes, map(jax.typeof, jax.tree.leaves(tree))))


def varying_alike(tree: T, axes: Collection[str] = ()) -> T:
    """The tree with each leaf varying along ``axes``, and all that any leaf does."""
    every = varies_along(tree).union(axes)

    def cast(x: Array) -> Array:
        # The array in a reference can only be cast before the reference is made.
        held = isinstance(jax.typeof(x), AbstractRef)
        missing = () if held else every - varies_along(x)
        return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(cast, tree) if every else tree


def varying_as_traced(types: Sequence[Aval], operands: Sequence[T]) -> list[T]:
    """The operands of an equation that was traced on those types.

    If one of them varies along more axes than it did then, all of them are made to.
    """
    if not in_shard_map():
        return list(operands)
    traced = list(map(_axes, types))
    more = frozenset().union(*(varies_along(x) - t for x, t in zip(operands, traced)))
    return [varying_alike(x, t | more) for x, t in zip(operands, traced)]


def exchanged_over(jaxpr: Program) -> frozenset[str]:
    """The axes, of maps around a program, over which it exchanges numbers."""
    axes: set[str] = set()
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        if eqn.primitive.name not in _STAY_ON_THE_DEVICE:
            named = (eqn.params.get(name, ()) for name in ("axes", "axis_name"))
            for names in named:
                names = names if isinstance(names, (tuple, list)) else (names,)
                axes.update(name for name in names if isinstance(name, str))
        inside = frozenset().union(*map(exchanged_over, programs_in(eqn.params)))
        if eqn.primitive.name == "shard_map":
            inside -= frozenset(manual_axes(eqn.params))
        axes |= inside
    return frozenset(axes)


def check_reverse_pass(
    where: str, jaxpr: Program, results: Sequence[Collection[str]]
) -> None:
    """Refuse a program whose reverse pass adds up what each device has of its own.

    The transpose of a sum over devices hands each device's cotangent to all of them.

    Args:
      where: the reverse pass is taken.
      jaxpr: of the program.
      results: along which axes each of them varies.
    """
    for axis in sorted(exchanged_over(jaxpr)):
        # Only inside a shard_map that checks do arrays know along what they vary.
        tracked = axis in varies_along(lax.axis_index(axis))
        if not tracked or any(axis in along for along in results):
            raise ValueError(
                f"{where} a function may exchange numbers over the axis {axis!r} only "
                "inside a jax.shard_map with check_vma=True, and for results that do "
                f"not vary along it; got collectives over {axis!r} "
                f"{'and a result that does' if tracked else 'elsewhere'}. Return its "
                f"lax.pmean over {axis!r}, or take what needs no reverse pass: "
                "plans.forward(), or curvature.sampled_diagonal for the diagonal."
            )


def _axes(abstract: Aval) -> frozenset[str]:
    # References and tokens have none.
    manual = getattr(abstract, "mat", None)
    return manual.varying if manual is not None else frozenset()
