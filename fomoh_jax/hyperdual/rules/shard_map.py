"""A shard_map: the same map with the channels beside the primals, split as they are."""

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from fomoh_jax.compat import manual_axes
from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.interpreter import interpret
from fomoh_jax.hyperdual.number import (
    ZERO,
    HyperDual,
    Pattern,
    Stack,
    moved,
    pattern_of,
)
from fomoh_jax.hyperdual.registry import Operation, rule


@rule("shard_map")
def _shard_map(form: Form, op: Operation, args: Sequence[HyperDual]):
    params = op.params
    args = [moved(arg, 0) for arg in args]

    def body(form: Form, args: list[HyperDual]) -> list[HyperDual]:
        return [moved(out, 0) for out in interpret(params["jaxpr"], form, args)]

    def mapped(function, out_specs):
        # A form may hold arrays (the rows of a chunk), which all devices need.
        form_specs = jax.tree.map(lambda _: PartitionSpec(), form)
        in_specs = _specs(params["in_specs"], pattern_of(args))
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
    patterns: list[Pattern] = []

    def discover(form, args):
        patterns.append(pattern_of(body(form, args)))
        return ()

    jax.eval_shape(mapped(discover, ()), form, args)
    return mapped(body, _specs(params["out_specs"], patterns[0]))(form, args)


def _specs(specs: Sequence[PartitionSpec], pattern: Pattern) -> list[HyperDual]:
    """The specifications of numbers: channels are not split between the directions."""

    def channel(spec, there):
        return Stack(PartitionSpec(None, *spec)) if there else ZERO  # pyright: ignore

    return [
        HyperDual(spec, *(channel(spec, there) for there in channels))
        for spec, channels in zip(specs, pattern)
    ]
