"""The flow of derivatives in a program: uses of parameters, and post-dominators.

A *use* is an equation that combines a parameter with something of the example. Its
derivative reaches the result along paths of variables. A variable that lies on all of
them *post-dominates* the use: the derivative with respect to the parameter is a product
of the one with respect to that variable, and it may be cut there. The immediate
post-dominators form a tree whose root is the result.
"""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.core import Atom
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from fomoh_jax._activations.program import Values
from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._hyperdual.environment import is_variable
from fomoh_jax._hyperdual.number import is_inexact
from fomoh_jax._types import Aval, Leaf

# Equations in which a parameter scales or shifts, element by element. What they make
# is no block of its own: it belongs to the product before it.
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "max", "min", "pow", "select_n", "add_any"),
    *("broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose"),
}


class Use(NamedTuple):
    """A place where a program reads a parameter.

    Attributes:
      equation: its number.
      operand: which of its operands the parameter is.
    """

    equation: int
    operand: int


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A program of one example, and how derivatives flow in it.

    Attributes:
      jaxpr: the program, flat.
      consts: the constants that it closes over.
      shared: the variables that are the same for every example.
      learned: those of them that depend on parameters, and have a derivative.
      results: the variables of which a derivative is wanted.
      opened: the numbers of the scan equations that are looked into.
      inner: operands of these by which parameters enter, whose uses are inside.
      carried: the inputs of which what is learned is a function: those of an example,
        or what the body of a loop carries.
    """

    jaxpr: Jaxpr
    consts: Sequence[Leaf]
    shared: frozenset[Var]
    learned: frozenset[Var]
    results: tuple[Var, ...]
    opened: frozenset[int] = frozenset()
    inner: tuple[Use, ...] = ()
    carried: tuple[Var, ...] = ()

    def given(self, args: Sequence[Leaf]) -> Values:
        """The values of inputs and constants."""
        constants = dict(zip(self.jaxpr.constvars, self.consts))
        return constants | dict(zip(self.jaxpr.invars, args))

    @functools.cached_property
    def consumers(self) -> dict[Var, list[int]]:
        """The numbers of the equations that read each variable."""
        consumers: dict[Var, list[int]] = {}
        for i, eqn in enumerate(self.jaxpr.eqns):
            for v in set(filter(is_variable, eqn.invars)):
                consumers.setdefault(v, []).append(i)
        return consumers

    @functools.cached_property
    def maker(self) -> dict[Var, int]:
        """The number of the equation that makes each variable."""
        return {v: i for i, eqn in enumerate(self.jaxpr.eqns) for v in eqn.outvars}

    def is_shared(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is the same for every example."""
        return all(v in self.shared for v in eqn.outvars) and bool(eqn.outvars)

    @functools.cached_property
    def uses(self) -> tuple[Use, ...]:
        """The uses, in the order of the program."""
        return tuple(
            Use(i, j)
            for i, eqn in enumerate(self.jaxpr.eqns)
            if not self.is_shared(eqn) and _passes_derivatives(eqn)
            for j, v in enumerate(eqn.invars)
            if is_variable(v) and v in self.learned and Use(i, j) not in self.inner
        )

    def parameter(self, use: Use) -> Var:
        """The variable that a use reads."""
        v = self.jaxpr.eqns[use.equation].invars[use.operand]
        assert is_variable(v)
        return v

    def parameters(self, uses: Sequence[Use]) -> list[Var]:
        """The variables that several uses read, each once."""
        return list(dict.fromkeys(map(self.parameter, uses)))

    @functools.cached_property
    def active(self) -> frozenset[Var]:
        """The variables, other than shared ones, through which derivatives flow."""
        return self._reached_from(self.carried)

    @functools.cached_property
    def dependent(self) -> frozenset[Var]:
        """The active variables that depend on parameters which this program reads."""
        return self._reached_from(())

    def _reached_from(self, variables: Sequence[Var]) -> frozenset[Var]:
        using = {use.equation for use in self.uses} | self.opened
        reached = set(variables)
        for i, eqn in enumerate(self.jaxpr.eqns):
            if not _passes_derivatives(eqn) or self.is_shared(eqn):
                continue
            if i in using or not reached.isdisjoint(filter(is_variable, eqn.invars)):
                reached.update(filter(is_inexact, eqn.outvars))
        return frozenset(reached)

    @functools.cached_property
    def tree(self) -> dict[Var, Var | None]:
        """The immediate post-dominator of each active variable that matters.

        ``None`` is the root, behind all results.
        """
        tree: dict[Var, Var | None] = {}
        depth: dict[Var | None, int] = {None: 0}
        made = [v for eqn in self.jaxpr.eqns for v in eqn.outvars]
        for v in reversed([*self.carried, *made]):
            if v in self.active:
                after: list[Var | None] = [None] if v in self.results else []
                for i in self.consumers.get(v, ()):
                    after += self._reached(i, tree)
                if after:
                    tree[v] = _meet(after, tree, depth)
                    depth[v] = depth[tree[v]] + 1
        return tree

    def _reached(self, equation: int, tree: dict[Var, Var | None]) -> list[Var | None]:
        eqn = self.jaxpr.eqns[equation]
        return [v for v in eqn.outvars if v in tree] if _passes_derivatives(eqn) else []

    @functools.cached_property
    def _depth(self) -> dict[Var | None, int]:
        depth: dict[Var | None, int] = {None: 0}
        for v in self.tree:  # parents come first
            depth[v] = depth[self.tree[v]] + 1
        return depth

    def after(self, equation: int) -> Var | None:
        """The first variable through which all that an equation makes must go."""
        reached = self._reached(equation, self.tree)
        return _meet(reached, self.tree, self._depth) if reached else None

    def matters(self, equation: int) -> bool:
        """Whether the derivative of a result flows through an equation."""
        return bool(self._reached(equation, self.tree))

    def is_last(self, v: Var) -> bool:
        """Whether nothing is learned behind a variable."""
        using = {use.equation for use in self.uses} | self.opened
        behind = self.behind(v)
        return all(
            behind.isdisjoint(filter(is_variable, self.jaxpr.eqns[i].invars))
            for i in using
        )

    def behind(self, v: Var) -> set[Var]:
        """A variable, and all that is computed from it."""
        reached = {v}
        for eqn in self.jaxpr.eqns[self.maker.get(v, -1) + 1 :]:
            if not reached.isdisjoint(filter(is_variable, eqn.invars)):
                reached.update(eqn.outvars)
        return reached

    def chain(self, v: Var | None) -> list[Var]:
        """A variable and its post-dominators, the nearest first."""
        chain = []
        while v is not None:
            chain.append(v)
            v = self.tree[v]
        return chain

    def is_product(self, equation: int) -> bool:
        """Whether an equation does more with a parameter than scale or shift."""
        name = self.jaxpr.eqns[equation].primitive.name
        return equation in self.opened or name not in _ELEMENTWISE

    def bytes_of(self, equation: int) -> int:
        """The bytes that a reverse pass over an equation may keep of one example.

        Values inside ``jax.checkpoint`` count, too: they are there again while it is
        differentiated.
        """
        eqn = self.jaxpr.eqns[equation]
        outputs = sum(size_in_bytes(v) for v in eqn.outvars if v in self.dependent)
        if not outputs:
            return outputs
        inside = sum(map(_bytes_inside, programs_in(eqn.params)))
        return outputs + inside * eqn.params.get("length", 1)

    def memory_by(self, chosen: Callable[[Var], bool]) -> dict[Var | None, int]:
        """The memory of a reverse pass before each chosen variable, and after the last.

        Bytes for one example, by the first of the chosen variables on the way to the
        result; by ``None`` where there is none.
        """
        memory: dict[Var | None, int] = defaultdict(int)
        for i in range(len(self.jaxpr.eqns)):
            if self.matters(i) and i not in self.opened:
                chain = self.chain(self.after(i))
                memory[next(filter(chosen, chain), None)] += self.bytes_of(i)
        return memory


def read_graph(
    closed: ClosedJaxpr,
    shared_inputs: Sequence[bool],
    learned_inputs: Sequence[bool],
    results: Sequence[Var],
    carried: Sequence[Var] = (),
) -> Graph:
    """The graph of a flat program.

    Args:
      closed: the program, of one example.
      shared_inputs: which inputs are the same for every example.
      learned_inputs: which of these are parameters.
      results: the variables of which a derivative is wanted.
      carried: inputs of an example, or what the body of a loop carries.
    """
    jaxpr = closed.jaxpr
    shared = {v for v, yes in zip(jaxpr.invars, shared_inputs) if yes}
    shared |= set(jaxpr.constvars)
    learned = {v for v, yes in zip(jaxpr.invars, learned_inputs) if yes}
    for eqn in jaxpr.eqns:
        operands = set(filter(is_variable, eqn.invars))
        if operands <= shared and not eqn.effects and not _spreads(eqn, learned):
            shared.update(eqn.outvars)
            if not operands.isdisjoint(learned) and _passes_derivatives(eqn):
                learned.update(filter(is_inexact, eqn.outvars))
    enter = tuple(v for v in carried if v not in shared and is_inexact(v))
    return Graph(
        jaxpr,
        closed.consts,
        frozenset(shared),
        frozenset(learned),
        tuple(results),
        carried=enter,
    )


def _spreads(eqn: JaxprEqn, learned: set[Var]) -> bool:
    """Whether an equation makes many numbers of a few parameters.

    It then is one of each example: what may be perturbed are the few.
    """
    if eqn.primitive.name != "broadcast_in_dim" or not is_variable(eqn.invars[0]):
        return False
    (few,), (many,) = eqn.invars[:1], eqn.outvars
    return few in learned and size_of(many) > size_of(few)


def type_of(atom: Atom) -> Aval:
    """The shape and dtype of a variable."""
    return atom.aval


def size_of(atom: Atom) -> int:
    """The number of real numbers that a variable holds."""
    complex_ = jnp.issubdtype(type_of(atom).dtype, jnp.complexfloating)
    return math.prod(type_of(atom).shape) * (2 if complex_ else 1)


def size_in_bytes(atom: Atom) -> int:
    """The memory that a variable takes; a token takes none."""
    held = hasattr(atom.aval, "dtype")
    size = math.prod(type_of(atom).shape) if held else 0
    return size * type_of(atom).dtype.itemsize if held else 0


def _bytes_inside(program) -> int:
    outputs = (v for eqn in open_jaxpr(program)[0].eqns for v in eqn.outvars)
    own = sum(size_in_bytes(v) for v in outputs if is_inexact(v))
    return own + sum(
        _bytes_inside(inside) * eqn.params.get("length", 1)
        for eqn in open_jaxpr(program)[0].eqns
        for inside in programs_in(eqn.params)
    )


def _passes_derivatives(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name != "stop_gradient"


def _meet(
    nodes: Sequence[Var | None],
    tree: dict[Var, Var | None],
    depth: dict[Var | None, int],
) -> Var | None:
    """The nearest common post-dominator of nodes."""
    first, *others = nodes
    for other in others:
        while first is not other:
            if depth[first] >= depth[other]:
                first = tree[first]  # type: ignore[index]
            else:
                other = tree[other]  # type: ignore[index]
    return first
