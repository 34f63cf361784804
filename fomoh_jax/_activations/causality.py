"""Perturbations that reach only the losses of their own position and of later ones.

The loss of a sequence is a sum over positions. If the program between a cut and it is
causal, what a perturbation at position t does to the losses before t is zero: it need
not be added up. That is read from the program, for each cut by itself, or not at all.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Atom, Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, Float

from fomoh_jax._activations.graph import type_of
from fomoh_jax._activations.partition import Block, Partition
from fomoh_jax._activations.program import CHECKPOINTS, Values, flat
from fomoh_jax._activations.reach import (
    NOWHERE,
    Reach,
    Value,
    apply_rule,
    constant,
    joined,
)
from fomoh_jax._compat import called_jaxpr, open_jaxpr, scan_layout
from fomoh_jax._hyperdual.environment import is_variable
from fomoh_jax._hyperdual.jaxprs import bind, derivative_of, read
from fomoh_jax._hyperdual.number import is_inexact
from fomoh_jax._types import Leaf

_CALLS = {
    *("jit", "closed_call", "core_call", "xla_metadata_call", "custom_vjp_call"),
    *CHECKPOINTS,
}
# Operations that are linear in a scalar: applied to the loss of each position, their
# results add up to what they make of the whole loss.
_LINEAR = {"neg", "add", "add_any", "sub", "mul", "div", "convert_element_type"}

# The place of a perturbation: a variable, or an operand of an equation.
Place = Var | tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class LossByPosition:
    """A loss as a sum over positions.

    Attributes:
      loss: the variable.
      sums: the axis of positions of each equation, by number, that sums over them.
      linear: the numbers of the equations of what is summed that lead to the loss.
      rest: scalars that are no sum over positions.
      length: the number of positions, and one more.
    """

    loss: Var
    sums: dict[int, int]
    linear: tuple[int, ...]
    rest: tuple[Var, ...]
    length: int

    def __call__(self, jaxpr: Jaxpr, values: Values) -> Float[Array, " length"]:
        """Numbers whose derivatives are those of the loss of each position.

        The last one is for all that is not a sum over positions.
        """
        parts: Values = {}
        for v in self.rest:
            parts[v] = jnp.zeros(self.length, values[v].dtype).at[-1].set(values[v])
        for i, axis in self.sums.items():
            eqn = jaxpr.eqns[i]
            (terms,), (out,) = read(values, eqn.invars), eqn.outvars
            others = tuple(a for a in range(terms.ndim) if a != axis)
            each = jnp.sum(terms, others, dtype=terms.dtype)
            parts[out] = jnp.pad(each, (0, self.length - len(each)))
        for i in self.linear:
            eqn = jaxpr.eqns[i]
            operands = read({**values, **parts}, eqn.invars)
            axes = [0 if is_variable(v) and v in parts else None for v in eqn.invars]
            parts[eqn.outvars[0]] = jax.vmap(
                lambda *operands: bind(eqn, operands)[0], axes
            )(*operands)
        return parts[self.loss]


def find_positions(partition: Partition) -> tuple[Partition, LossByPosition | None]:
    """The blocks with the axes of their positions, where there are any.

    Args:
      partition: of a program that ends in the loss.

    Returns:
      It, with the axes; and how the loss is a sum over positions, if that is of use.
    """
    loss, places = _Loss(partition), list(_places(partition))
    if not loss.sums or not any(place.lengths for place in places):
        return partition, None
    reading = _Reading(partition)
    for place in reversed(places):
        reading.settle(place, loss)
    if not reading.settled:
        return partition, None
    found = {id(place.block): reading.axis(place) for place in places}
    lengths = [
        place.lengths[axis]
        for place in places
        if (axis := found[id(place.block)]) is not None
    ]
    return _with_axes(partition, found), loss.by_position(max(lengths))


def _with_axes(partition: Partition, found: Mapping[int, int | None]) -> Partition:
    blocks = tuple(
        dataclasses.replace(block, positions=found[id(block)])
        for block in partition.blocks
    )
    scans = {i: _with_axes(inner, found) for i, inner in partition.scans.items()}
    return dataclasses.replace(partition, blocks=blocks, scans=scans)


@dataclasses.dataclass(frozen=True, eq=False)
class _Perturbed:
    """The places that a block perturbs, and where in the program they are.

    Attributes:
      block: the block.
      places: the cut, or where its parameters are read.
      path: the numbers of the scan equations that it is inside of.
      lengths: the number of positions that there would be, by axis or loop.
    """

    block: Block
    places: tuple[Place, ...]
    path: tuple[int, ...]
    lengths: dict[int, int]


def _places(
    partition: Partition, path: tuple[int, ...] = (), loops: tuple[int, ...] = ()
) -> Iterator[_Perturbed]:
    """The perturbed places of each block, in the order of the program."""
    eqns = partition.jaxpr.eqns
    lengths = {-1 - i: n for i, n in enumerate(loops)}
    found: list[tuple[int, Iterator[_Perturbed] | list[_Perturbed]]] = []
    for block in partition.blocks:
        if block.cut is not None and block.perturbs == "activations":
            axes = dict(enumerate(type_of(block.cut).shape)) | lengths
            own = _Perturbed(block, (block.cut,), path, axes)
            found.append((partition.graph.maker[block.cut], [own]))
        else:
            uses = () if block.perturbs == "nothing" else block.uses
            places = tuple((id(eqns[i]), j) for i, j in uses)
            first = min((use.equation for use in uses), default=len(eqns))
            own = _Perturbed(block, places, path, lengths if places else {})
            found.append((first, [own]))
    for i, inner in partition.scans.items():
        length = eqns[i].params["length"]
        found.append((i, _places(inner, (*path, i), (*loops, length))))
    for _, some in sorted(found, key=lambda pair: pair[0]):
        yield from some


class _Loss:
    """A loss, taken apart as far as it is linear in sums over all axes.

    Attributes:
      sums: the equations that may sum over positions, and along which axis; None where
        that is not known yet.
    """

    def __init__(self, partition: Partition):
        self.graph = partition.graph
        self.sums: dict[int, int | None] = {}
        self._linear: set[int] = set()
        self._rest: list[Var] = []
        # A perturbation of a scalar is not in the sums that the scalar is made of.
        self._perturbed = {block.cut for block in partition.blocks}
        for block in partition.blocks:
            for use in block.uses if block.perturbs == "parameters" else ():
                self._perturbed.update(self.graph.jaxpr.eqns[use.equation].outvars)
        for v in self.graph.results:
            self._take_apart(v)

    def _take_apart(self, v: Var) -> None:
        graph = self.graph
        if v not in graph.dependent or v in self._rest:
            return
        i = graph.maker[v]
        eqn, name = graph.jaxpr.eqns[i], graph.jaxpr.eqns[i].primitive.name
        operands = [x for x in eqn.invars if is_variable(x) and x in graph.dependent]
        scalars = all(type_of(x).shape == () for x in eqn.invars)
        if v in self._perturbed:
            self._rest.append(v)
        elif name == "reduce_sum" and operands:  # of all axes, as the loss is a scalar
            self.sums.setdefault(i, None)
        elif i in self._linear:
            return
        elif name in _LINEAR and scalars and _is_linear(eqn, operands):
            self._linear.add(i)
            for x in operands:
                self._take_apart(x)
        else:
            self._rest.append(v)

    def accepts(self, reaches: Mapping[int, Reach]) -> bool:
        """Whether each sum is one over positions; which axis these are is then kept.

        The first that are decide: a sum that mixes positions there is taken as it is.
        """
        known = {i: axis for i, axis in self.sums.items() if axis is not None}
        axes = {i: _only(reach) for i, reach in reaches.items() if reach != NOWHERE}
        if known:
            agree = all(
                axis is not None and known.get(i, axis) == axis
                for i, axis in axes.items()
            )
            if not agree:
                return False
        elif all(axis is None for axis in axes.values()):
            return False
        for i, axis in axes.items():
            if axis is None:
                del self.sums[i]
                self._rest.append(self.graph.jaxpr.eqns[i].outvars[0])
            else:
                self.sums[i] = axis
        return True

    def by_position(self, length: int) -> LossByPosition:
        """The loss as a sum over positions, at least ``length`` of them."""
        (loss,), eqns = self.graph.results, self.graph.jaxpr.eqns
        known = {i: axis for i, axis in self.sums.items() if axis is not None}
        others = [eqns[i].outvars[0] for i in self.sums if i not in known]
        lengths = [type_of(eqns[i].invars[0]).shape[axis] for i, axis in known.items()]
        return LossByPosition(
            loss,
            known,
            tuple(sorted(self._linear)),
            (*self._rest, *others),
            1 + max(length, *lengths),
        )


def _is_linear(eqn: JaxprEqn, operands: Sequence[Var]) -> bool:
    """Whether an equation is linear in those of its operands that have derivatives."""
    name = eqn.primitive.name
    if name in ("mul", "div"):
        return len(operands) == 1 and (name == "mul" or eqn.invars[0] is operands[0])
    return True


def _only(reach: Reach) -> int | None:
    """The axis of positions of a value with that reach, or None if it has none."""
    axes = reach or ()
    axis = next(iter(axes), -1)
    return axis if len(axes) == 1 and axis >= 0 else None


class _Reading:
    """A program, and what is known of its variables.

    Attributes:
      settled: the axis of positions of the places that are causal. What reaches one of
        these along that axis alone need not be followed behind it.
    """

    def __init__(self, partition: Partition):
        self.partition = partition
        self.settled: dict[Place, int] = {}
        self._sources: dict[Place, int] = {}
        self._holding: set[int] = set()  # equations in which something is perturbed
        self._linearised: dict[int, ClosedJaxpr] = {}
        self._flat: dict[int, ClosedJaxpr] = {}
        self._constants: dict[int, Value] = {}
        graph = partition.graph
        # Parameters are no masks; what an example holds may be one.
        inputs = [
            Value(type_of(v).shape, ordinary=v in graph.shared)
            for v in graph.jaxpr.invars
        ]
        self._facts: dict[Var, Value] = {}
        self._evaluate(partition, graph.jaxpr, graph.consts, inputs, self._facts)

    def axis(self, place: _Perturbed) -> int | None:
        """The axis of positions, or the loop over them, if it is causal."""
        return self.settled.get(place.places[0]) if place.places else None

    def settle(self, place: _Perturbed, loss: _Loss) -> None:
        """Find the axis along which what is perturbed there is causal, if it is."""
        for axis in (*range(len(place.lengths)), *range(-len(place.path), 0)):
            if place.lengths.get(axis, 0) > 1 and loss.accepts(
                self._reached(place, axis, loss)
            ):
                self.settled |= dict.fromkeys(place.places, axis)
                return

    def _reached(self, place: _Perturbed, axis: int, loss: _Loss) -> dict[int, Reach]:
        """The reach of the terms of each sum of a loss, if one place is perturbed."""
        self._sources = dict.fromkeys(place.places, axis)
        self._holding = set()
        partition = self.partition
        for i in place.path:
            self._holding.add(id(partition.jaxpr.eqns[i]))
            partition = partition.scans[i]
        self._holding |= {p[0] for p in place.places if isinstance(p, tuple)}
        env, graph = dict(self._facts), self.partition.graph
        self._run(self.partition, graph.jaxpr, env, 0)
        self._sources, self._holding = {}, set()
        summed = {i: graph.jaxpr.eqns[i].invars[0] for i in loss.sums}
        return {i: _value_of(env, v).reach for i, v in summed.items()}

    # Evaluating programs on what is known of values.

    def _evaluate(
        self,
        partition: Partition | None,
        jaxpr: Jaxpr,
        consts: Sequence[Leaf],
        inputs: Sequence[Value],
        env: dict[Var, Value] | None = None,
        depth: int = 0,
    ) -> list[Value]:
        env = {} if env is None else env
        for v, x in zip(jaxpr.constvars, consts):
            if id(x) not in self._constants:
                self._constants[id(x)] = _of_constant(x)
            env[v] = self._constants[id(x)]
        env.update(zip(jaxpr.invars, inputs))
        self._run(partition, jaxpr, env, depth)
        return [_value_of(env, v) for v in jaxpr.outvars]

    def _run(
        self,
        partition: Partition | None,
        jaxpr: Jaxpr,
        env: dict[Var, Value],
        depth: int,
    ) -> None:
        scans = {} if partition is None else partition.scans
        for i, eqn in enumerate(jaxpr.eqns):
            operands = [_value_of(env, v) for v in eqn.invars]
            if eqn.outvars and all(v in env for v in eqn.outvars):
                # Known already; only what is perturbed must be followed.
                still = all(x.reach == NOWHERE for x in operands)
                perturbed = not self._sources.keys().isdisjoint(eqn.outvars)
                if still and not perturbed and id(eqn) not in self._holding:
                    continue
            for j, x in enumerate(operands):
                operands[j] = self._perturbed((id(eqn), j), x)
            outs = self._results(eqn, operands, scans.get(i), depth)
            for v, x in zip(eqn.outvars, outs):
                if not is_inexact(v):
                    x = dataclasses.replace(x, reach=NOWHERE)
                env[v] = self._perturbed(v, x)

    def _perturbed(self, place: Place, x: Value) -> Value:
        """A value with what is perturbed there, and without what is settled."""
        if place in self.settled and x.reach == {self.settled[place]}:
            x = dataclasses.replace(x, reach=NOWHERE)
        if place in self._sources:
            own = frozenset([self._sources[place]])
            x = dataclasses.replace(x, reach=joined(x.reach, own))
        return x

    def _results(
        self,
        eqn: JaxprEqn,
        operands: Sequence[Value],
        body: Partition | None,
        depth: int,
    ) -> list[Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, operands, body, depth)
        if name == "custom_jvp_call":
            return self._own_rule(eqn, operands, depth)
        if name == "stop_gradient":
            operands = [dataclasses.replace(x, reach=NOWHERE) for x in operands]
        if name in _CALLS:
            program = open_jaxpr(called_jaxpr(eqn.params))
            return self._evaluate(None, *program, operands, depth=depth)
        return apply_rule(eqn, operands)

    def _own_rule(
        self, eqn: JaxprEqn, operands: Sequence[Value], depth: int
    ) -> list[Value]:
        """A function whose derivative is not that of what it computes."""
        still = [dataclasses.replace(x, reach=NOWHERE) for x in operands]
        program = open_jaxpr(called_jaxpr(eqn.params))
        outs = self._evaluate(None, *program, still, depth=depth)
        if all(x.reach == NOWHERE for x in operands):
            return outs
        if id(eqn) not in self._linearised:
            self._linearised[id(eqn)] = derivative_of(eqn)
        varying = [
            Value(x.shape, x.reach)
            for x, v in zip(operands, eqn.invars)
            if is_inexact(v)
        ]
        derivative = open_jaxpr(self._linearised[id(eqn)])
        tangents = self._evaluate(None, *derivative, [*still, *varying], depth=depth)
        found = iter(tangents)
        return [
            dataclasses.replace(x, reach=next(found).reach) if is_inexact(v) else x
            for x, v in zip(outs, eqn.outvars)
        ]

    def _scan(
        self,
        eqn: JaxprEqn,
        operands: Sequence[Value],
        body: Partition | None,
        depth: int,
    ) -> list[Value]:
        """A loop, whose body is evaluated until what it carries changes no more."""
        layout = scan_layout(eqn.params, len(operands), len(eqn.outvars))
        if id(eqn) not in self._flat:
            self._flat[id(eqn)] = flat(eqn.params["jaxpr"])
        program = open_jaxpr(self._flat[id(eqn)])
        if body is not None:
            program = body.jaxpr, body.graph.consts
        now = -1 - depth
        inputs = list(operands)
        for j in layout.xs:
            x = operands[j]
            axes = {a: a - 1 for a in range(1, len(x.shape))} | {0: now}
            reach = x.reach and frozenset(axes.get(a, a) for a in x.reach)
            inputs[j] = Value(x.shape[1:], reach, ordinary=x.ordinary)
        for j in layout.carry:
            x = operands[j]
            inputs[j] = Value(x.shape, x.reach, ordinary=x.ordinary)
        while True:
            outs = self._evaluate(body, *program, inputs, depth=depth + 1)
            carried = [outs[j] for j in layout.carry_out]
            if eqn.params["reverse"]:  # from later positions to earlier ones
                carried = [_without_loop(x, now) for x in carried]
            stable = True
            for j, x in zip(layout.carry, carried):
                before = inputs[j]
                reach = joined(before.reach, x.reach)
                ordinary = before.ordinary and x.ordinary
                stable &= reach == before.reach and ordinary == before.ordinary
                inputs[j] = Value(before.shape, reach, ordinary=ordinary)
            if stable:
                break
        results: list[Value] = [Value(())] * len(outs)
        for j, k in zip(layout.carry_out, layout.carry):
            results[j] = _without_loop(inputs[k], now)
        for j in layout.ys:
            x, shape = outs[j], type_of(eqn.outvars[j]).shape
            axes = {a: a + 1 for a in range(len(x.shape))} | {now: 0}
            reach = x.reach and frozenset(axes.get(a, a) for a in x.reach)
            results[j] = Value(shape, reach, ordinary=x.ordinary)
        return results


def _without_loop(x: Value, loop: int) -> Value:
    """A value that a loop leaves, or carries to earlier positions."""
    if x.reach is not None and loop in x.reach:
        return dataclasses.replace(x, reach=None)
    return x


def _value_of(env: Mapping[Var, Value], atom: Atom) -> Value:
    if isinstance(atom, Literal):
        return constant(np.asarray(atom.val, type_of(atom).dtype))
    return env[atom]


def _of_constant(x: Leaf) -> Value:
    """The :class:`Value` of a constant; its shape alone if it cannot be read."""
    read = isinstance(x, np.ndarray) or (
        isinstance(x, jax.Array)
        and not isinstance(x, Tracer)
        and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        and x.is_fully_addressable
    )
    return constant(np.asarray(x)) if read else Value(np.shape(x))
