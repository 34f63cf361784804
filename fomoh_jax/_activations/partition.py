"""The blocks that a program is cut into.

What is perturbed is the cut behind a block; or the parameters of the block, if they are
fewer numbers than the cut, or if JAX has no reverse mode for what lies between.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from fomoh_jax._activations.candidates import candidates, marked
from fomoh_jax._activations.choice import best_cuts
from fomoh_jax._activations.graph import (
    Graph,
    Use,
    read_graph,
    size_of,
)
from fomoh_jax._activations.program import flat, is_mark, mark_name
from fomoh_jax._compat import open_jaxpr, programs_in, scan_layout
from fomoh_jax._hyperdual.environment import is_variable

# JAX differentiates no loop of unknown length backwards.
_IRREVERSIBLE = {"while"}
# Programs inside of these are not differentiated: they have a rule of their own.
_OWN_REVERSE_RULE = {"custom_vjp_call", "custom_linear_solve"}

Blocks = int | Literal["marked"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Parameters whose derivatives are found together.

    Attributes:
      uses: where the program reads them.
      cut: the variable behind which the program is cut; ``None`` for the last block,
        whose derivative is exact, and where the parameters are perturbed.
      perturbs: what is perturbed.
      size: how many numbers that is, for one example.
      memory: bytes that a reverse pass over the block keeps, of one example.
      name: the user's, if the cut is marked.
      positions: the axis of what is perturbed, or the loop around it (-1 for the
        outermost), along which it reaches only the losses of positions from its own on.
    """

    uses: tuple[Use, ...]
    cut: Var | None
    perturbs: Literal["activations", "parameters", "nothing"]
    size: int
    memory: int
    name: str | None = None
    positions: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """A program and its blocks.

    Attributes:
      graph: of the program, flat.
      blocks: in the order in which their cuts are made.
      scans: of the scan equations that are cut inside, by number, that of the body.
      ends: whether the program ends in the loss. The body of a loop does not.
    """

    graph: Graph
    blocks: tuple[Block, ...]
    scans: dict[int, "Partition"]
    ends: bool

    @property
    def jaxpr(self) -> Jaxpr:
        return self.graph.jaxpr

    @property
    def is_exact(self) -> bool:
        """Whether nothing is perturbed."""
        return not self.scans and all(b.perturbs == "nothing" for b in self.blocks)

    def count(self) -> int:
        """The number of blocks; those in a loop count once an iteration."""
        return len(self.blocks) + self._inside(lambda inner: inner.count())

    def noise(self) -> int:
        """Σ size of what is perturbed."""
        own = sum(block.size for block in self.blocks)
        return own + self._inside(lambda inner: inner.noise())

    def memory(self) -> int:
        """Bytes of the largest block."""
        own = [block.memory for block in self.blocks]
        return max(
            [*own, *(inner.memory() for inner in self.scans.values())], default=0
        )

    def _inside(self, number: Callable[["Partition"], int]) -> int:
        return sum(
            number(inner) * self.jaxpr.eqns[i].params["length"]
            for i, inner in self.scans.items()
        )


def partition(
    closed: ClosedJaxpr,
    shared: Sequence[bool],
    learned: Sequence[bool],
    blocks: Blocks,
) -> Partition:
    """Cut a flat program of one example, whose first result is the loss, into blocks.

    Args:
      closed: the program.
      shared: which of its inputs are the same for every example.
      learned: which of them are parameters.
      blocks: how many at most; ``None`` for all, or ``"marked"``.

    Raises:
      ValueError: if there are not as many blocks, or no marks.
    """
    loss = filter(is_variable, closed.jaxpr.outvars[:1])
    graph = read_graph(closed, shared, learned, tuple(loss), closed.jaxpr.invars)
    if blocks == 1:  # whether JAX can differentiate it or not
        uses = tuple(use for use in graph.uses if graph.matters(use.equation))
        memory = sum(graph.memory_by(lambda v: False).values())
        block = Block(uses, None, "nothing", 0, memory)
        return Partition(graph, (block,) if uses else (), {}, True)
    whole = _cut_at(graph, {}, (), ends=True)
    if blocks == "marked":
        opened, bodies = _open_scans(graph, marked, required=False)
        marks = marked(opened, ends=True)
        if not marks and not bodies:
            raise ValueError(
                'blocks="marked" needs at least one mark: call fomoh_jax.cut(x) in the '
                "model, on an activation through which all that is learned before it "
                "reaches the loss."
            )
        return _cut_at(opened, bodies, marks, ends=True)
    opened, bodies = _open_scans(graph, candidates, required=True)
    every = _cut_at(opened, bodies, candidates(opened, ends=True), ends=True)
    if blocks is None:
        return every
    if blocks > every.count():
        raise ValueError(
            f"blocks must be at most {every.count()}, which is how many this loss can "
            f"be cut into, or None for all of them; got {blocks}."
        )
    options = [whole]
    for form, inside in ((graph, {}), (opened, bodies)):
        inner = Partition(form, (), inside, True).count()
        for left in range(blocks - 1 - inner, -1, -1):
            taken = best_cuts(form, candidates(form, ends=True), left)
            option = _cut_at(form, inside, taken, ends=True)
            # What a loop begins with may be a block of its own.
            if option.count() <= blocks:
                options.append(option)
                break
    return min(options, key=lambda p: (p.memory(), p.noise()))


def _cut_at(
    graph: Graph, scans: dict[int, Partition], cuts: Collection[Var], ends: bool
) -> Partition:
    """The blocks that cuts make.

    ``ends`` says that what no cut is behind leads to the loss, and its derivative is
    exact. Otherwise, in a loop, its parameters are perturbed.
    """
    is_cut = frozenset(cuts).__contains__
    uses: dict[Var | None, list[Use]] = defaultdict(list)
    memory = graph.memory_by(is_cut)
    behind = lambda v: next(filter(is_cut, graph.chain(v)), None)
    entering = []  # as the first value of what a loop that is cut inside carries
    for use in graph.uses:
        if use.equation in graph.opened:
            entering.append(use)
        elif graph.matters(use.equation):
            uses[behind(graph.after(use.equation))].append(use)
    names: dict[Var | None, str | None] = {
        eqn.outvars[0]: mark_name(eqn) for eqn in filter(is_mark, graph.jaxpr.eqns)
    }
    place = lambda cut: len(graph.jaxpr.eqns) if cut is None else graph.maker[cut]
    blocks = [
        _block(graph, uses[cut], cut, memory[cut], names.get(cut), ends)
        for cut in sorted(uses, key=place)
    ]
    if entering:
        blocks.insert(0, _block(graph, entering, None, 0, None, ends=False))
    return Partition(graph, tuple(blocks), scans, ends)


def _block(
    graph: Graph,
    uses: Sequence[Use],
    cut: Var | None,
    memory: int,
    name: str | None,
    ends: bool,
) -> Block:
    parameters = sum(map(size_of, graph.parameters(uses)))
    if cut is None and ends and not _irreversible(graph, uses, cut):
        return Block(tuple(uses), None, "nothing", 0, memory, name)
    if (
        cut is None
        or parameters < size_of(cut)  # the quieter
        or _irreversible(graph, uses, cut)
    ):
        return Block(tuple(uses), None, "parameters", parameters, 0, name)
    return Block(tuple(uses), cut, "activations", size_of(cut), memory, name)


def _irreversible(graph: Graph, uses: Sequence[Use], cut: Var | None) -> bool:
    """Whether a loop of unknown length lies between uses and their cut."""
    reading = {use.equation for use in uses}
    region: set[Var] = set()
    for i, eqn in enumerate(graph.jaxpr.eqns):
        if i in reading or not region.isdisjoint(filter(is_variable, eqn.invars)):
            if graph.matters(i) and not _primitives(eqn).isdisjoint(_IRREVERSIBLE):
                return True
            region.update(v for v in eqn.outvars if v in graph.active)
        if cut in eqn.outvars:
            break
    return False


def _primitives(eqn: JaxprEqn) -> set[str]:
    """The names of what is differentiated in an equation."""
    if eqn.primitive.name in _OWN_REVERSE_RULE:
        return {eqn.primitive.name}
    inside = (
        _primitives(inner)
        for program in programs_in(eqn.params)
        for inner in open_jaxpr(program)[0].eqns
    )
    return {eqn.primitive.name}.union(*inside)


def _open_scans(
    graph: Graph, places: Callable[[Graph, bool], list[Var]], required: bool
) -> tuple[Graph, dict[int, Partition]]:
    """The graph without the uses inside of scans, and the blocks of their bodies.

    A scan stays closed if nothing is learned in it, or (with ``required``) if some of
    what is learned in it could not be cut.
    """
    scans, inner = {}, []
    for i, eqn in enumerate(graph.jaxpr.eqns):
        if eqn.primitive.name != "scan" or not graph.matters(i) or graph.is_shared(eqn):
            continue
        layout = scan_layout(eqn.params, len(eqn.invars), len(eqn.outvars))
        closed = flat(eqn.params["jaxpr"])
        body = closed.jaxpr
        shared = [not is_variable(v) or v in graph.shared for v in eqn.invars]
        learned = [is_variable(v) and v in graph.learned for v in eqn.invars]
        if any(learned[j] for j in layout.carry):
            shared = [s and j not in layout.carry for j, s in enumerate(shared)]
            learned = [s and j not in layout.carry for j, s in enumerate(learned)]
        shared = _fixed_point(closed, shared, learned, layout)
        results = [
            v
            for v, out in zip(body.outvars, eqn.outvars)
            if is_variable(v) and (out in graph.tree or v in _carried(body, layout))
        ]
        carried = [body.invars[j] for j in layout.carry]
        inside = read_graph(closed, shared, learned, results, carried)
        if not inside.uses or not inside.learned.isdisjoint(results):
            continue
        opened, bodies = _open_scans(inside, places, required)
        cuts = places(opened, False)
        if not required and not cuts and not bodies:
            continue
        scans[i] = _cut_at(opened, bodies, cuts, ends=False)
        inner += [Use(i, j) for j in (*layout.consts, *layout.xs) if learned[j]]
    opened_graph = dataclasses.replace(
        graph, opened=frozenset(scans), inner=tuple(inner)
    )
    return opened_graph, scans


def _carried(body: Jaxpr, layout) -> set[Var]:
    return set(filter(is_variable, (body.outvars[j] for j in layout.carry_out)))


def _fixed_point(
    body: ClosedJaxpr, shared: Sequence[bool], learned: Sequence[bool], layout
) -> list[bool]:
    """Whether each input of the body of a scan is the same for every example.

    A carry that a parameter adds to along the way is not: its derivative flows.
    """
    shared = list(shared)
    while True:
        graph = read_graph(body, shared, learned, ())
        after = list(shared)
        for into, out in zip(layout.carry, layout.carry_out):
            v = body.jaxpr.outvars[out]
            known = not is_variable(v) or v in graph.shared - graph.learned
            after[into] = shared[into] and known
        if after == shared:
            return shared
        shared = after
