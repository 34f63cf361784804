"""The pairs of directions, split over the devices along an axis of a mesh."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, PyTree

from fomoh_jax._compat import open_jaxpr
from fomoh_jax._hyperdual.arguments import check_size
from fomoh_jax._hyperdual.channels import ZERO, Stack
from fomoh_jax._hyperdual.evaluation import coefficients_of
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.loops import chunks_joined, overlapping_chunks
from fomoh_jax._hyperdual.mesh_axes import (
    exchanged_over,
    in_shard_map,
    varies_along,
    varying_alike,
)
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.pair_forms import FirstOrder
from fomoh_jax._hyperdual.part_forms import Rows
from fomoh_jax._hyperdual.plans.forward import applied_to_part, places_in_chunks
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._types import Leaf


def split(mesh_axis: str, chunk_size: int | None = None) -> Plan:
    """A forward pass whose second-order coefficients are split over devices.

    Each device along an axis of the mesh in use (``jax.set_mesh``, or
    ``jax.shard_map``) carries all the tangents, and its share of the rows of the
    curvature. The devices exchange nothing but the slopes and curvatures of the output.
    The other axes of the mesh are left as they are, for a batch that is sharded. With
    an axis of ``AxisType.Explicit``, data must be an argument that is held fixed,
    because ``jax.shard_map`` takes no function that closes over it; and products with
    the Hessian need a mesh whose axes are all of ``AxisType.Auto``.

    Args:
      mesh_axis: the name of the axis. The number of its devices must divide ``k`` for a
        model or a Hessian; for products it may be any.
      chunk_size: bound on memory, for each device, as in :func:`forward`.

    Returns:
      A plan.

    Raises:
      TypeError: if ``mesh_axis`` is no string, or ``chunk_size`` no Python integer.
      ValueError: if ``chunk_size`` is not positive; where the plan is used, if the mesh
        has no such axis, or the number of its devices does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fomoh_jax import hessian, plans
      >>> f = lambda x: jnp.sum(x ** 3)
      >>> with jax.set_mesh(jax.make_mesh((1,), ("pairs",))):
      ...   print(hessian(f, plan=plans.split("pairs"))(jnp.array([1.0, 2.0])))
      [[ 6.  0.]
       [ 0. 12.]]
    """
    if not isinstance(mesh_axis, str):
        raise TypeError(
            f"mesh_axis must be the name of an axis of the mesh; got {mesh_axis!r}."
        )
    size = None if chunk_size is None else check_size("chunk_size", chunk_size)
    return Split(mesh_axis, size)


@dataclasses.dataclass(frozen=True)
class Split(Plan):
    """The plan that :func:`split` returns."""

    mesh_axis: str
    chunk_size: int | None = None

    def placed(self, model: Callable, k: int) -> Callable:
        if _is_mapped(self.mesh_axis, k):
            return model
        return jax.shard_map(
            model,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            axis_names={self.mesh_axis},
            check_vma=False,
        )

    def curvatures(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        axis, offsets = self.mesh_axis, k // 2 + 1
        numbers = _over_devices(jaxpr, k, args, wanted, axis, self.chunk_size)
        seconds = coefficients_of(numbers[:wanted], "seconds", offsets * k)
        places = places_in_chunks(k, offsets, np.zeros(1, int))
        return numbers, [x[places] for x in seconds]

    def products(
        self,
        columns: Callable,
        slopes: Callable,
        primals: PyTree,
        point: Float[Array, " D"],
    ) -> jax.Array:
        axis, size = self.mesh_axis, point.size
        kinds = _axis_types()
        if AxisType.Explicit in kinds.values():
            raise ValueError(
                f"plans.split({axis!r}) of a product with the Hessian needs a mesh "
                f"whose axes are all of AxisType.Auto; got {kinds}."
            )

        def share(primals: PyTree, point: Float[Array, " D"]) -> jax.Array:
            length = -(-size // lax.axis_size(axis))
            first = lax.axis_index(axis) * length
            part = applied_to_part(
                columns, primals, point, first, length, self.chunk_size
            )
            whole = jnp.zeros((len(part), length * lax.axis_size(axis)), part.dtype)
            whole = lax.dynamic_update_slice_in_dim(whole, part[:, :length], first, 1)
            return lax.psum(whole, axis)[:, :size]

        # Past the end of the basis there are zeros: any number of devices will do.
        return self.placed(share, 0)(primals, point)

    def check_closure(self) -> None:
        kinds = _axis_types()
        if AxisType.Explicit in kinds.values():
            kinds = {name: str(kind) for name, kind in kinds.items()}
            raise ValueError(
                f"plans.split({self.mesh_axis!r}) needs a mesh whose axes are all of "
                "AxisType.Auto where value_fn takes more than the parameters: inside "
                "jax.shard_map a function cannot close over arrays with explicit "
                f"shardings; got {kinds}. Make it by jax.make_mesh(shape, names, "
                "axis_types=(jax.sharding.AxisType.Auto,) * n)."
            )


def _axis_types() -> dict[str, AxisType]:
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types))


def _over_devices(
    jaxpr: ClosedJaxpr,
    k: int,
    args: Sequence[HyperDual],
    wanted: int,
    mesh_axis: str,
    chunk_size: int | None,
) -> list[HyperDual]:
    """The numbers that come out, the first ``wanted`` with seconds.

    Of the ``(k // 2 + 1) * k`` seconds that at ``n * k + i`` belongs to the directions
    ``i`` and ``i + n`` modulo ``k``. Each device finds those of an equal share of the
    ``i``, at most ``chunk_size`` of them at a time. It numbers the directions from its
    own on, so that all of them run the same program. Inside a ``jax.shard_map`` over
    the axis.
    """
    _check_the_same(jaxpr, args, mesh_axis)
    share = k // lax.axis_size(mesh_axis)
    own = lax.axis_index(mesh_axis) * share
    primals, parts = _share(jaxpr, k, args, wanted, own, share, chunk_size)
    # Each coefficient is on one device, and zero on the others.
    parts = lax.psum(parts, mesh_axis)
    if mesh_axis in varies_along(primals):
        # The same everywhere, which their type does not say any more.
        constants = [HyperDual(x.primal) for x in args]
        primals = [x.primal for x in interpret(jaxpr, FirstOrder(k), constants)]
    channels = iter(
        [(Stack(slope), Stack(chunks_joined(table))) for slope, table in parts]
    )
    return [
        HyperDual(primal, *(next(channels) if n < wanted and varies else (ZERO, ZERO)))
        for n, (primal, varies) in enumerate(zip(primals, map(is_inexact, primals)))
    ]


def _is_mapped(mesh_axis: str, k: int) -> bool:
    """Whether a ``jax.shard_map`` is over the axis already; raises if it cannot be."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh_axis not in mesh.axis_names:
        known = ", ".join(map(repr, mesh.axis_names)) or "none"
        raise ValueError(
            f"mesh_axis must name an axis of the mesh in use; got {mesh_axis!r}, and "
            f"there is {known}. Call under jax.set_mesh(jax.make_mesh(...))."
        )
    devices = mesh.shape[mesh_axis]
    if k % devices:
        below, above = k // devices * devices, (k // devices + 1) * devices
        raise ValueError(
            "the number of directions must be divisible by the number of devices along "
            f"mesh_axis={mesh_axis!r}; got k={k} for {devices} devices. Take k="
            f"{f'{below} or k={above}' if below else above}, or another plan."
        )
    return dict(zip(mesh.axis_names, mesh.axis_types))[mesh_axis] == AxisType.Manual


def _check_the_same(
    jaxpr: ClosedJaxpr, args: Sequence[HyperDual], mesh_axis: str
) -> None:
    """Refuse a function that is another one on each device."""
    primals = [x.primal for x in args]
    different = {
        "the primals vary": mesh_axis in varies_along(primals),
        "what fun closes over varies": mesh_axis in varies_along(open_jaxpr(jaxpr)[1]),
        "fun exchanges numbers": mesh_axis in exchanged_over(jaxpr),
    }
    if any(different.values()):
        found = " and ".join(what for what, is_so in different.items() if is_so)
        raise ValueError(
            f"mesh_axis={mesh_axis!r} splits the pairs of directions over devices that "
            f"have all else in common; got a call inside a jax.shard_map where {found} "
            "along that axis. Split a batch over another axis of the mesh. (For arrays "
            "that are equal all the same, map with check_vma=False.)"
        )


def _share(
    jaxpr: ClosedJaxpr,
    k: int,
    args: Sequence[HyperDual],
    wanted: int,
    own: jax.Array,
    share: int,
    chunk_size: int | None,
) -> tuple[list[Leaf], list[tuple[Array, Array]]]:
    """Primals, and ``[k, *out]`` slopes and ``[k // 2 + 1, k, *out]`` seconds.

    These are of the first ``wanted`` that vary, and zero but for the ``share`` of the
    directions from ``own`` on.
    """
    rows, starts = overlapping_chunks(share, chunk_size)
    form, offsets = Rows(k, rows), k // 2 + 1

    def chunk(parts, start):
        # Each chunk finds its own tangents: kept for the next, they would be those of
        # every layer.
        again, start = lax.optimization_barrier((args, start))
        along = [HyperDual(x.primal, x.tangents.rotated(start, k)) for x in again]
        numbers = interpret(jaxpr, form, along)
        varying = [n for n in numbers[:wanted] if is_inexact(n.primal)]
        after = []
        for (slopes, tables), number in zip(parts, varying):
            slope = number.tangents.whole(k).array[:rows]
            table = number.seconds.whole(form.q).array
            table = table.reshape(offsets, rows, *table.shape[1:])
            slopes = lax.dynamic_update_slice_in_dim(slopes, slope, start, 0)
            tables = lax.dynamic_update_slice_in_dim(tables, table, start, 1)
            after.append((slopes, tables))
        return after, [jnp.asarray(n.primal) for n in numbers]

    varying = [x for x in jaxpr.out_avals[:wanted] if is_inexact(x)]
    zeros = lambda x, *lead: jnp.zeros((*lead, *x.shape), x.dtype)
    parts = [(zeros(x, k), zeros(x, offsets, k)) for x in varying]
    if len(starts) == 1:
        parts, primals = chunk(parts, own)
        return primals, parts
    if in_shard_map():
        parts = varying_alike(parts, varies_along(jax.eval_shape(chunk, parts, own)))
    parts, primals = lax.scan(chunk, parts, own + starts)
    return [x[0] for x in primals], parts
