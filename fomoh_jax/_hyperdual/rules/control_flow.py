"""Control flow: restage the loop or the branch with the extra channels beside it.

Which channels a carry has is static. It starts with those of the initial value and
grows until one more turn of the body adds none: a fixed point, reached after at most
two turns per carried value, and usually after one. Their stacking axes are where the
body puts them, so that no turn moves them.
"""

import math
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend import source_info_util
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from fomoh_jax._compat import open_jaxpr, scan_layout
from fomoh_jax._hyperdual.channels import ZERO, Alignment, Channel, alignment
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.interpreter import interpret, staged
from fomoh_jax._hyperdual.mesh_axes import varies_along, varying_alike
from fomoh_jax._hyperdual.number import HyperDual, Pattern, is_inexact, pattern_of
from fomoh_jax._hyperdual.registry import Operation, rule
from fomoh_jax._hyperdual.rules.at_once import all_steps
from fomoh_jax._hyperdual.rules.decomposed import rewritten


def _union(*patterns: Pattern) -> Pattern:
    """The channels of any of several patterns, along the axes of the first that has."""
    first = lambda axes: next((axis for axis in axes if axis is not None), None)
    return [tuple(map(first, zip(*numbers))) for numbers in zip(*patterns)]


def _widen(
    form: Form,
    numbers: Sequence[HyperDual],
    pattern: Pattern,
    axes: Collection[str] = (),
) -> list[HyperDual]:
    """The same numbers with the channels of the pattern, or more.

    They vary along at least those axes of a mesh.
    """

    def widened(number: HyperDual, places: tuple[int | None, ...]) -> HyperDual:
        channels = [
            channel if axis is None else channel.whole(size, axis)
            for channel, size, axis in zip(number.channels, (form.k, form.q), places)
        ]
        return HyperDual(number.primal, *channels)

    return varying_alike(list(map(widened, numbers, pattern)), axes)


def _fixed_point(
    body: Callable[..., list[HyperDual]],
    form: Form,
    init: list[HyperDual],
    *slices: PyTree[jax.ShapeDtypeStruct],
) -> Pattern:
    """The channels that a carry ends up with.

    Args:
      body: maps the carry, and what else it takes, to the next carry.
      form: of the numbers.
      init: the carry before the first turn.
      *slices: what else the body takes, abstract.
    """
    pattern, grown = pattern_of(init), None
    there = lambda pattern: [[axis is None for axis in axes] for axes in pattern]
    while grown is None or there(grown) != there(pattern):
        pattern = grown or pattern
        widened = jax.eval_shape(lambda init: _widen(form, init, pattern), init)
        after = pattern_of(jax.eval_shape(body, widened, *slices))
        grown = _union(after, pattern)
    return grown


def _abstract_slice(array: Shaped[Array, "time ..."]) -> jax.ShapeDtypeStruct:
    """One step of a scanned array."""
    if not len(array):
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
    return jax.eval_shape(lambda x: x[0], array)


# Scanned arrays lead with time, and so do the slices that a scan takes of a channel
# whose directions come later. One whose directions come first, as those of a stack of
# layers do, would have to be copied for that, all layers at once; it stays outside, and
# each turn cuts its part out of it.


def _leading(number: HyperDual) -> list[Channel]:
    """The channels of a scanned number whose directions come before time."""
    return [c if c.axis == 0 else ZERO for c in number.channels]


def _scanned(number: HyperDual) -> HyperDual:
    """A scanned number without those."""
    return number.map_channels(lambda channel: ZERO if channel.axis == 0 else channel)


def _at(channels: Sequence[Channel], time: Int[Array, ""]) -> list[Channel]:
    """The slices of the channels at a time."""

    def cut(array: Array) -> Array:
        if len(array):
            return lax.dynamic_index_in_dim(array, time, keepdims=False)
        # No turn will be taken, but its shapes are asked for.
        return jnp.zeros(array.shape[1:], array.dtype)

    return [channel.mapped(cut, 0) for channel in channels]


def _merged(number: HyperDual, channels: Sequence[Channel]) -> HyperDual:
    """The number with its zero channels replaced."""
    both = zip(number.channels, channels)
    return HyperDual(number.primal, *(b if a.is_zero else a for a, b in both))


def _shifted(number: HyperDual, by: int) -> HyperDual:
    """The number with its stacks said, not made, to be along later axes.

    A scan takes time away in front of what it scans, and puts it before what it stacks.
    """
    return number.map_channels(lambda channel: channel.declared(channel.axis + by))


def _are_best_apart(args: Sequence[HyperDual], terms: int, size: int) -> bool:
    """Whether some operands vary, and sums over them are best left as terms."""
    channels = [channel for arg in args for channel in arg.channels]
    return not all(channel.is_zero for channel in channels) and all(
        channel.is_summed_apart(terms, size) for channel in channels
    )


@rule("scan")
def _scan(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    layout = scan_layout(op.params, len(args), len(op.outputs))
    carry = [op.inputs[i] for i in layout.carry]
    carried = sum(math.prod(x.shape) for x in carry if is_inexact(x))
    if _are_best_apart(args, op.params["length"], carried):
        program = all_steps(op, layout, [arg.primal for arg in args])
        if program is not None:
            return rewritten(program, form, args)
    args = [arg.stored() for arg in args]
    interpreted = staged(op.params["jaxpr"], "scan")
    init = [args[i] for i in layout.carry]
    times = jnp.arange(op.params["length"])
    waiting = [_leading(args[i]) for i in layout.xs]
    xs = [_scanned(args[i]) for i in layout.xs]

    def turn(carry, slices):
        time, xs = slices
        numbers = list(args)
        for i, number in zip(layout.carry, carry):
            numbers[i] = number
        for i, number, others in zip(layout.xs, xs, waiting):
            numbers[i] = _merged(_shifted(number, -1), _at(others, time))
        outs = interpreted(form, numbers)
        ys = [outs[i].stored() for i in layout.ys]
        return [outs[i] for i in layout.carry_out], ys

    slices = jax.tree.map(_abstract_slice, (times, xs))
    pattern = _fixed_point(lambda *state: turn(*state)[0], form, init, slices)
    axes = varies_along(args)

    def body(carry, slices):
        carry, ys = turn(carry, slices)
        return _widen(form, carry, pattern, axes), ys

    carry, ys = lax.scan(
        body,
        _widen(form, init, pattern),
        (times, xs),
        length=op.params["length"],
        reverse=op.params["reverse"],
        unroll=op.params["unroll"],
    )
    outs: dict[int, HyperDual] = dict(zip(layout.carry_out, carry))
    outs.update(zip(layout.ys, (_shifted(y, 1) for y in ys)))
    return [outs[i] for i in range(len(outs))]


@rule("while")
def _while(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    args = [arg.stored() for arg in args]
    num_cond, num_body = op.params["cond_nconsts"], op.params["body_nconsts"]
    cond_consts = [HyperDual(arg.primal) for arg in args[:num_cond]]
    body_consts = list(args[num_cond : num_cond + num_body])
    init = list(args[num_cond + num_body :])
    interpreted = staged(op.params["body_jaxpr"], "while")

    def turn(carry):
        return interpreted(form, [*body_consts, *carry])

    def unfinished(carry):
        numbers = [*cond_consts, *(HyperDual(n.primal) for n in carry)]
        return interpret(op.params["cond_jaxpr"], form, numbers)[0].primal

    pattern, axes = _fixed_point(turn, form, init), varies_along(args)

    # vmap leaves a while equation with a predicate for each member of the batch.
    predicate = open_jaxpr(op.params["cond_jaxpr"])[0].outvars[0].aval
    assert isinstance(predicate, ShapedArray)

    def body(carry):
        after = _widen(form, turn(carry), pattern, axes)
        return _where(unfinished(carry), after, carry) if predicate.ndim else after

    outs = lax.while_loop(
        lambda carry: jnp.any(unfinished(carry)), body, _widen(form, init, pattern)
    )
    return _without_reverse(outs) if form.is_reversed else outs


def _without_reverse(outs: list[HyperDual]) -> list[HyperDual]:
    """The results of a while loop, for which a reverse pass raises an error.

    JAX would raise it too, without the line of the program. What no reverse pass
    reaches, such as an aux, raises none.
    """
    line = source_info_util.summarize(source_info_util.current())

    def refuse(residuals: None, cotangents: PyTree) -> PyTree:
        raise ValueError(
            "plans.adjoint() takes a reverse pass, and there is none through a while "
            "loop whose carry has second-order terms, nor through a fori_loop of "
            f"unknown length{line and f': the one at {line}'}. Take plans.forward(), "
            "which needs none; or write the loop as a lax.scan, or as a fori_loop "
            "between Python integers."
        )

    same = jax.custom_vjp(lambda seconds: seconds)
    same.defvjp(lambda seconds: (seconds, None), refuse)
    seconds = same([out.seconds for out in outs])
    return [HyperDual(n.primal, n.tangents, s) for n, s in zip(outs, seconds)]


def _where(
    running: Bool[Array, "*batch"], after: list[HyperDual], before: list[HyperDual]
) -> list[HyperDual]:
    """The next state of those loops of a batch that still run; of others the last one.

    Both have the same channels along the same axes.
    """

    def choose(new, old):
        # Primals lead with the batch; behind it come the stacks of a channel's.
        extra = (1,) * (jnp.ndim(new) - running.ndim)
        return lax.select(
            jnp.broadcast_to(running.reshape(*running.shape, *extra), jnp.shape(new)),
            new,
            old,
        )

    behind = lambda channel: channel.moved(max(channel.axis, running.ndim))
    chosen = jax.tree.map(
        choose,
        [number.map_channels(behind) for number in after],
        [number.map_channels(behind) for number in before],
    )
    back = lambda number, axes: [c.moved(a.axis) for c, a in zip(number.channels, axes)]
    return [
        HyperDual(number.primal, *back(number, old.channels))
        for number, old in zip(chosen, before)
    ]


@rule("cond")
def _cond(form: Form, op: Operation, args: Sequence[HyperDual]) -> list[HyperDual]:
    index = args[0].stored()
    operands = [arg.map_channels(lambda c: c.arranged(c.axis)) for arg in args[1:]]

    def branch(jaxpr):
        return lambda operands: staged(jaxpr, "branch")(form, operands)

    branches = [branch(jaxpr) for jaxpr in op.params["branches"]]
    results = [jax.eval_shape(b, operands) for b in branches]
    axes = varies_along(args)
    alignments = [
        [alignment(channels) for channels in zip(*(n.channels for n in numbers))]
        for numbers in zip(*results)
    ]

    def aligned(number: HyperDual, of_each: Sequence[Alignment]) -> HyperDual:
        channels = zip(of_each, number.channels, (form.k, form.q))
        return HyperDual(number.primal, *(align(x, n) for align, x, n in channels))

    def all_aligned(numbers: Sequence[HyperDual]) -> list[HyperDual]:
        return varying_alike(list(map(aligned, numbers, alignments)), axes)

    alike = [lambda operands, b=b: all_aligned(b(operands)) for b in branches]
    platforms = op.params.get("branches_platforms")
    if platforms is None:
        return _within(lax.switch(index.primal, alike, operands))
    # lax.platform_dependent: the compiler picks, and may be unable to lower the others.
    each = {name: b for names, b in zip(platforms, alike) for name in names or ()}
    default = [b for names, b in zip(platforms, alike) if names is None]
    outs = lax.platform_dependent(operands, default=(*default, None)[0], **each)
    return _within(outs)


def _within(numbers: Sequence[HyperDual]) -> list[HyperDual]:
    """The numbers, with what has too many slots stored."""
    return [number.map_channels(lambda x: x.within()) for number in numbers]
