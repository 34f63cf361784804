"""A shard_map: the same map with the channels beside the primals, split as they are."""

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from fomoh_jax._compat import manual_axes
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.mesh_axes import varying_alike
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.registry import Operation, rule


@rule("shard_map")
def _shard_map(form: Form, op: Operation, args: Sequence[HyperDual]):
    params = op.params
    args = [arg.moved(0) for arg in args]

    def body(form: Form, args: list[HyperDual]) -> list[HyperDual]:
        return [out.moved(0) for out in interpret(params["jaxpr"], form, args)]

    def mapped(function, out_specs):
        # A form may hold arrays (the rows of a chunk), which all devices need.
        form_specs = jax.tree.map(lambda _: PartitionSpec(), form)
        in_specs = _specs(params["in_specs"], args)
        return jax.shard_map(
            function,
            mesh=params["mesh"],
            in_specs=(form_specs, in_specs),
            out_specs=out_specs,
            check_vma=params["check_vma"],
            axis_names=manual_axes(params),
        )

    # The results' specifications need to know which channels they have, which only the
    # inside of the map can tell.
    found: list[list[HyperDual]] = []

    def discover(form, args):
        found.append(body(form, args))
        return ()

    jax.eval_shape(mapped(discover, ()), form, args)
    return mapped(body, _specs(params["out_specs"], found[0]))(form, args)


def _specs(
    specs: Sequence[PartitionSpec], numbers: Sequence[HyperDual]
) -> list[HyperDual]:
    """The specifications of numbers: channels are not split between the directions."""

    def of_number(spec: PartitionSpec, number: HyperDual) -> HyperDual:
        structure = jax.tree.structure(number)
        stacked = [PartitionSpec(None, *spec)] * (structure.num_leaves - 1)
        return structure.unflatten([spec, *stacked])

    return list(map(of_number, specs, numbers))


@rule("pvary", of_constants=True)
def _pvary(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    return varying_alike(list(args), op.params["axes"])  # some may vary already
