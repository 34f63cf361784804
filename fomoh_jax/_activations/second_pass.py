"""The second pass: from one number an example to the gradient, block by block.

The program is computed again and, for each block alone, the product of ``d u`` with the
transpose of its derivative. What that keeps is forgotten before the next block begins.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Atom
from jax.extend.core import Var
from jaxtyping import Array, DTypeLike, Float, Shaped

from fomoh_jax._activations.graph import Graph, Use, type_of
from fomoh_jax._activations.partition import Partition
from fomoh_jax._activations.perturbations import of_block, signs
from fomoh_jax._activations.program import Values, scan_with
from fomoh_jax._compat import scan_layout
from fomoh_jax._hyperdual.environment import is_variable
from fomoh_jax._hyperdual.jaxprs import bind, read
from fomoh_jax._types import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slopes:
    """The slopes that the first pass found, and the keys of its perturbations.

    Attributes:
      keys: of each probe of each example.
      slope: the derivative of each example's loss along each of them, divided by their
        number.
      weight: one over the number of examples.
      later: the slope of the part of the loss that is at each position or at later
        ones, if the loss is a sum over positions.
      now: the same at the iteration that runs, of each loop around.
    """

    keys: Shaped[Array, "examples probes *data"]
    slope: Float[Array, "examples probes"]
    weight: float = dataclasses.field(metadata={"static": True})
    later: Float[Array, "examples probes positions"] | None = None
    now: tuple[Float[Array, "examples probes"], ...] = ()

    def of_block(self, index: int | Array) -> "Slopes":
        """The slopes, with the keys of a block or of a loop."""
        fold = lambda key: of_block(key, index)
        return dataclasses.replace(self, keys=jax.vmap(jax.vmap(fold))(self.keys))

    def at(self, time: Array) -> "Slopes":
        """The slopes at an iteration of a loop."""
        own = self.of_block(time)
        if self.later is None:
            return own
        # A loop that is longer than the loss is over its layers, and reads none.
        now = lax.dynamic_index_in_dim(self.later, time, 2, keepdims=False)
        return dataclasses.replace(own, now=(*self.now, now))

    def along(self, ndim: int, length: int, positions: int | None) -> Array:
        """The slopes of what has so many axes, with those of examples and probes."""
        if self.later is None or positions is None:
            slope = self.slope
        elif positions < 0:
            slope = self.now[-1 - positions]
        else:
            shape = [1] * ndim
            shape[positions] = length
            return self.later[..., :length].reshape(*self.slope.shape, *shape)
        return slope.reshape(*slope.shape, *[1] * ndim)

    def products(
        self, shape: Sequence[int], dtype: DTypeLike, positions: int | None = None
    ) -> Array:
        """``Σ d u`` over the probes, for each example: its part of the derivative.

        Args:
          shape, dtype: of what is perturbed.
          positions: its axis of positions, or the loop over them, as in a ``Block``.
        """

        def of_probe(total, probe):
            keys, slope = probe
            u = jax.vmap(lambda key: signs(key, shape, dtype))(keys)
            return total + slope.astype(dtype) * u.conj(), None

        length = shape[positions] if positions is not None and positions >= 0 else 1
        slopes = self.along(len(shape), length, positions)
        probes = jnp.moveaxis(self.keys, 1, 0), jnp.moveaxis(slopes, 1, 0)
        first, *_ = of_probe(0, jax.tree.map(lambda x: x[0], probes))
        others = jax.tree.map(lambda x: x[1:], probes)
        return lax.scan(of_probe, first, others)[0] if len(others[1]) else first


class Derivatives(NamedTuple):
    """The results of the second pass.

    Attributes:
      results: of the program, with the examples in front of those that differ.
      gradients: by each input; ``None`` for those that are not learned.
      noise: the squared standard error of each block's part, if it was asked for:
        first those of the program itself, then those in its loops, ``[length, ...]``.
    """

    results: list[Leaf]
    gradients: list[Leaf | None]
    noise: list[Array]


def differentiate_blocks(
    partition: Partition, args: Sequence[Leaf], slopes: Slopes, groups: int = 1
) -> Derivatives:
    """The program of all examples, and the derivative by each input that is learned.

    Args:
      partition: of the program of one example.
      args: with the examples in front, but for those that are the same for all.
      slopes: what the first pass found.
      groups: of equally many examples, from whose spread the noise follows; with 1
        there is none.
    """
    done = _SecondPass(partition, args, slopes, groups)
    for i in range(len(partition.blocks)):
        done.differentiate(i)
    # A loop that lies inside of a block was differentiated there by what comes before
    # it. By its own parameters it is differentiated when it is computed by itself.
    loops = (partition.jaxpr.eqns[i] for i in partition.scans)
    outputs = partition.jaxpr.outvars
    done.compute(v for eqn in loops for v in eqn.outvars)
    done.compute(filter(is_variable, outputs))
    noise = [*done.noise, *(x for i in partition.scans for x in done.noise_inside[i])]
    return Derivatives(read(done.values, outputs), done.by_inputs(), noise)


class _SecondPass:
    """The values of a program so far, and the derivatives by its parameters."""

    def __init__(
        self, partition: Partition, args: Sequence[Leaf], slopes: Slopes, groups: int
    ):
        self.partition, self.graph, self.slopes = partition, partition.graph, slopes
        self.eqns, self.groups = partition.jaxpr.eqns, groups
        self.args = self.graph.given(args)
        self.inputs = [v for v in partition.jaxpr.invars if v in self.graph.learned]
        self.values: Values = self.with_shared({})
        self.gradients: Values = {}
        self.noise: list[Array] = []
        self.noise_inside: dict[int, list[Array]] = {}

    def with_shared(self, given: Values) -> Values:
        """The arguments, of which some may be given, and what only depends on them."""
        values = self.args | given
        for eqn in self.eqns:
            if self.graph.is_shared(eqn):
                values.update(zip(eqn.outvars, bind(eqn, read(values, eqn.invars))))
        return values

    def add(self, gradients: Values) -> None:
        """Count parts of the derivatives by shared variables."""
        for v, part in gradients.items():
            known = v in self.gradients
            self.gradients[v] = self.gradients[v] + part if known else part

    def pulled(self, gradients: Values) -> Values:
        """Derivatives by the inputs, of those by what only depends on them."""
        own = {v: x for v, x in gradients.items() if v in self.args}
        others = [v for v in gradients if v not in self.args]
        if others:
            _, pull = jax.vjp(
                lambda given: read(
                    self.with_shared(dict(zip(self.inputs, given))), others
                ),
                [self.args[v] for v in self.inputs],
            )
            for v, part in zip(self.inputs, pull(read(gradients, others))[0]):
                own[v] = own[v] + part if v in own else part
        return own

    def by_inputs(self) -> list[Leaf | None]:
        """The derivative by each input."""
        # A loss that depends on no example is differentiated as it is.
        for v in self.graph.results if self.partition.ends else ():
            if v in self.graph.learned:
                self.add({v: jnp.ones_like(self.values[v])})
        pulled = self.pulled(self.gradients)
        return [
            pulled.get(v, jnp.zeros_like(self.args[v])) if v in self.inputs else None
            for v in self.partition.jaxpr.invars
        ]

    # Computing what is not known yet.

    def missing(self, variables: Iterable[Var]) -> list[int]:
        """The equations that make variables, and have not been computed."""
        needed, numbers = set(variables) - self.values.keys(), []
        for i in range(len(self.eqns) - 1, -1, -1):
            eqn = self.eqns[i]
            if not needed.isdisjoint(eqn.outvars):
                numbers.append(i)
                needed |= set(filter(is_variable, eqn.invars)) - self.values.keys()
        return numbers[::-1]

    def compute(self, variables: Iterable[Var]) -> None:
        """Make variables known, and differentiate the loops that are met."""
        run: list[int] = []
        for i in [*self.missing(variables), None]:
            if i is not None and i not in self.partition.scans:
                run.append(i)
                continue
            self.evaluate(run)
            run = []
            if i is not None:
                self.scan(i)

    def evaluate(self, numbers: Sequence[int]) -> None:
        """Equations of all examples at once."""
        if numbers:
            program = _Program(self, numbers)
            values = read(self.values, program.read)
            outs = program.mapped(len(self.slopes.slope))({}, *values)
            self.values.update(zip(program.outputs, outs))

    # Differentiating.

    def differentiate(self, index: int) -> None:
        """Add the derivatives by the parameters of a block."""
        block = self.partition.blocks[index]
        variables = self.graph.parameters(block.uses)
        if block.perturbs == "parameters":
            derivatives = functools.partial(self.by_perturbed_parameters, index)
            self.add_up(variables, derivatives, [])
            return
        cut = self.graph.results[0] if block.cut is None else block.cut
        region = self.region(block.uses, cut)
        inside = {v for i in region for v in self.eqns[i].outvars}
        outside = {v for i in region for v in self.eqns[i].invars if is_variable(v)}
        self.compute(outside - inside)
        program = _Program(self, region, cut)
        derivatives = functools.partial(self.by_transpose, index, program)
        outs = self.add_up(variables, derivatives, program.read)
        loops = {v for i in self.partition.scans for v in self.eqns[i].outvars}
        fresh = zip(program.outputs, outs)
        self.values |= {
            v: x for v, x in fresh if v not in loops and v not in self.values
        }

    def add_up(
        self,
        variables: Sequence[Var],
        derivatives: Callable[..., tuple[list[Leaf], list[Leaf]]],
        inputs: Sequence[Var],
    ) -> list[Leaf]:
        """Add derivatives by variables, and keep their noise if it is asked for.

        Args:
          variables: shared ones.
          derivatives: ``(slopes, *values of inputs) -> (derivatives, outs)`` of any of
            the examples; those by variables add up.
          inputs: variables.

        Returns:
          ``outs`` of all examples.
        """
        values = read(self.values, inputs)
        if self.groups == 1:
            parts, outs = derivatives(self.slopes, *values)
            self.add(dict(zip(variables, parts)))
            return outs
        split = lambda x: x.reshape(self.groups, -1, *x.shape[1:])
        together = lambda x: x.reshape(-1, *x.shape[2:])
        axes = [None if v in self.graph.shared else 0 for v in inputs]
        values = [x if axis is None else split(x) for x, axis in zip(values, axes)]
        parts, outs = jax.vmap(derivatives, (0, *axes))(
            jax.tree.map(split, self.slopes), *values
        )
        self.add({v: jnp.sum(x, 0) for v, x in zip(variables, parts)})
        by_inputs = lambda parts: list(
            self.pulled(dict(zip(variables, parts))).values()
        )
        errors = map(squared_error_of_sum, jax.vmap(by_inputs)(parts))
        self.noise.append(jnp.sum(jnp.stack(list(errors))))
        return [together(x) for x in outs]

    def by_perturbed_parameters(
        self, index: int, slopes: Slopes
    ) -> tuple[list[Leaf], list[Leaf]]:
        """``Σ d u`` over the examples, where u perturbed the parameters."""
        own, parts = slopes.of_block(index), []
        block = self.partition.blocks[index]
        for j, v in enumerate(self.graph.parameters(block.uses)):
            aval = type_of(v)
            of_each = own.of_block(j).products(aval.shape, aval.dtype, block.positions)
            parts.append(jnp.sum(of_each, 0) * self.slopes.weight)
        return parts, []

    def by_transpose(
        self,
        index: int,
        program: "_Program",
        slopes: Slopes,
        *inputs: Leaf,
    ) -> tuple[list[Leaf], list[Leaf]]:
        """The transpose of the derivative of a block, of what is known of its cut."""
        block = self.partition.blocks[index]
        at_uses = read(self.values, map(self.graph.parameter, block.uses))
        mapped = program.mapped(len(slopes.slope))
        out, pull, outs = jax.vjp(
            lambda at_uses: mapped(dict(zip(block.uses, at_uses)), *inputs),
            at_uses,
            has_aux=True,
        )
        if block.cut is None:
            cotangent = jnp.full_like(out, slopes.weight)
        else:
            aval, own = type_of(block.cut), slopes.of_block(index)
            cotangent = own.products(aval.shape, aval.dtype, block.positions)
            cotangent = cotangent * jnp.asarray(slopes.weight, cotangent.dtype)
        # A parameter may be read twice.
        read_at = map(self.graph.parameter, block.uses)
        sums: Values = {}
        for v, part in zip(read_at, pull(cotangent)[0]):
            sums[v] = sums[v] + part if v in sums else part
        return list(sums.values()), outs

    def region(self, uses: Sequence[Use], cut: Var) -> list[int]:
        """The equations between uses of parameters and a cut."""
        needed, ancestors = {cut}, []
        for i in range(len(self.eqns) - 1, -1, -1):
            if not needed.isdisjoint(self.eqns[i].outvars):
                ancestors.append(i)
                needed.update(filter(is_variable, self.eqns[i].invars))
        reading = {use.equation for use in uses}
        made: set[Var] = set()
        region = []
        for i in reversed(ancestors):
            eqn = self.eqns[i]
            if i in reading or not made.isdisjoint(filter(is_variable, eqn.invars)):
                made.update(eqn.outvars)
                region.append(i)
        return region

    def scan(self, i: int) -> None:
        """Compute a loop and differentiate its body."""
        eqn, body = self.eqns[i], self.partition.scans[i]
        slopes = self.slopes.of_block(len(self.partition.blocks) + i)
        layout = scan_layout(eqn.params, len(eqn.invars), len(eqn.outvars))
        operands = read(self.values, eqn.invars)
        for j, (outer, inner) in enumerate(zip(eqn.invars, body.jaxpr.invars)):
            if is_of_all(self.graph, outer) and not is_of_all(body.graph, inner):
                operands[j] = self.repeated(operands[j])
            elif j in layout.xs and not is_of_all(body.graph, inner):
                operands[j] = jnp.moveaxis(operands[j], 1, 0)
        learned = {use.operand for use in self.graph.inner if use.equation == i}
        consts = [j for j in layout.consts if j in learned]
        slices = [j for j in layout.xs if j in learned]
        # Whether what comes out of an iteration is the same for every example.
        same = [is_of_all(body.graph, v) for v in body.jaxpr.outvars]

        def step(values, time):
            outs, gradients, noise = differentiate_blocks(
                body, values, slopes.at(time), self.groups
            )
            for into, out in zip(layout.carry, layout.carry_out):
                if same[out] and not is_of_all(body.graph, body.jaxpr.invars[into]):
                    outs[out] = self.repeated(outs[out])
            by_consts, by_slices = (
                [gradients[j] for j in places] for places in (consts, slices)
            )
            return outs, (by_consts, (by_slices, noise))

        start = [jnp.zeros_like(operands[j]) for j in consts]
        outs, (total, (stacked, noise)) = scan_with(eqn, operands, step, start)
        self.noise_inside[i] = noise
        for into, out in zip(layout.carry, layout.carry_out):
            if is_of_all(body.graph, body.jaxpr.invars[into]):
                outs[out] = self.repeated(outs[out])
        for j in layout.ys:
            outs[j] = self.repeated(outs[j]) if same[j] else jnp.moveaxis(outs[j], 0, 1)
        self.values.update(zip(eqn.outvars, outs))
        for places, parts in ((consts, total), (slices, stacked)):
            for j, part in zip(places, parts):
                self.add({self.graph.parameter(Use(i, j)): part})

    def repeated(self, x: Leaf) -> Array:
        """A value that is the same for every example, once for each."""
        return jax.vmap(lambda _: x)(self.slopes.slope)  # and sharded as they are


def is_of_all(graph: Graph, atom: Atom) -> bool:
    """Whether a value is the same for every example."""
    return not is_variable(atom) or atom in graph.shared


def squared_error_of_sum(parts: Float[Array, "groups *s"]) -> Float[Array, ""]:
    """The squared standard error of the sum of parts, from their spread."""
    groups, dtype = len(parts), jnp.result_type(float)
    parts = parts.astype(dtype)
    spread = groups * parts - jnp.sum(parts, 0, keepdims=True)
    return jnp.sum(spread**2) / (groups * (groups - 1))


class _Program:
    """Some equations as a function of the parameters at their uses.

    Attributes:
      outputs: what they make that anything else reads.
    """

    def __init__(
        self, whole: _SecondPass, numbers: Sequence[int], cut: Var | None = None
    ):
        self.whole, self.numbers, self.cut = whole, numbers, cut
        eqns = [whole.eqns[i] for i in numbers]
        made = {v for eqn in eqns for v in eqn.outvars}
        reads = dict.fromkeys(v for eqn in eqns for v in eqn.invars if is_variable(v))
        self.read = [v for v in reads if v not in made]
        inside, jaxpr = set(numbers), whole.partition.jaxpr
        wanted = set(filter(is_variable, jaxpr.outvars))
        for i, eqn in enumerate(whole.eqns):
            if i not in inside:
                wanted.update(filter(is_variable, eqn.invars))
        self.outputs = [v for eqn in eqns for v in eqn.outvars if v in wanted]

    def mapped(self, examples: int) -> Callable:
        """``function(at_uses, *inputs)``, over examples where these have some."""
        axes = [None if v in self.whole.graph.shared else 0 for v in self.read]
        return jax.vmap(self.one, (None, *axes), axis_size=examples)

    def one(self, at_uses: dict[Use, Leaf], *inputs: Leaf) -> Any:
        values: Values = dict(zip(self.read, inputs))
        for i in self.numbers:
            eqn = self.whole.eqns[i]
            operands = read(values, eqn.invars)
            for j in range(len(operands)):
                operands[j] = at_uses.get(Use(i, j), operands[j])
            values.update(zip(eqn.outvars, bind(eqn, operands)))
        outs = [values[v] for v in self.outputs]
        return outs if self.cut is None else (values[self.cut], outs)
