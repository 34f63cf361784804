"""The blocks that a program is cut into.

**Where a cut may lie.** On the line of variables that leads to the result past most of
the parameters (at each step back, to where more products with parameters are), the
variables between one such product and the next are one group, and the smallest of a
group, of equals the last, is its candidate: behind a relu or a pooling, and not before.
A branch off the line (attention beside a residual stream) belongs to the group in which
it comes back. A branch with more than eight products has a line of its own.

**Which candidates are taken.** With ``n`` blocks, those ``n - 1`` cuts of which the
largest block needs the least memory, and of these the quietest:

    minimise  (max over blocks of the bytes of their activations,  Σ size(cut)).

``Σ size(cut) / (examples · probes)`` is what the variance of the estimate, relative to
the square of the gradient, is proportional to.

**What is perturbed.** The cut; or the parameters of the block, if they are fewer
numbers than the cut, or if JAX has no reverse mode for what lies between.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from fomoh_jax._activations.graph import (
    Graph,
    Use,
    read_graph,
    size_in_bytes,
    size_of,
)
from fomoh_jax._activations.program import flat, is_mark, mark_name
from fomoh_jax._compat import open_jaxpr, programs_in, scan_layout
from fomoh_jax._hyperdual.environment import is_variable

# A branch of a residual block has up to four products with parameters, or some more if
# it is gated or a mixture; an encoder beside a decoder has more.
_LONGEST_BRANCH = 8
_MANY = 1000
# JAX differentiates no loop of unknown length backwards.
_IRREVERSIBLE = {"while"}
# What is inside of these is not differentiated.
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
    """

    uses: tuple[Use, ...]
    cut: Var | None
    perturbs: Literal["activations", "parameters", "nothing"]
    size: int
    memory: int
    name: str | None = None


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

    def count(self) -> int:
        """How many blocks there are; those in a loop count once an iteration."""
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
        memory = sum(_memory_by(graph, lambda v: False).values())
        block = Block(uses, None, "nothing", 0, memory)
        return Partition(graph, (block,) if uses else (), {}, True)
    whole = _cut_at(graph, {}, (), ends=True)
    if blocks == "marked":
        opened, bodies = _open_scans(graph, _marked, required=False)
        marks = _marked(opened, ends=True)
        if not marks and not bodies:
            raise ValueError(
                'blocks="marked" needs at least one mark: call fomoh_jax.cut(x) in the '
                "model, on an activation through which all that is learned before it "
                "reaches the loss."
            )
        return _cut_at(opened, bodies, marks, ends=True)
    opened, bodies = _open_scans(graph, _candidates, required=True)
    candidates = _candidates(opened, ends=True)
    every = _cut_at(opened, bodies, candidates, ends=True)
    if blocks is None:
        return every
    if blocks > every.count():
        raise ValueError(
            f"blocks must be at most {every.count()}, which is how many this loss can "
            f"be cut into, or None for all of them; got {blocks}."
        )
    options = [whole]
    for form, inside in ((graph, {}), (opened, bodies)):
        left = blocks - 1 - Partition(form, (), inside, True).count()
        if left >= 0:
            taken = _best(form, _candidates(form, ends=True), left)
            options.append(_cut_at(form, inside, taken, ends=True))
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
    memory = _memory_by(graph, is_cut)
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
    parameters = sum(map(size_of, set(map(graph.parameter, uses))))
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


# -- candidates


def _candidates(graph: Graph, ends: bool) -> list[Var]:
    """Where a program may be cut, in its order.

    ``ends``: the program ends in the loss, and is not cut where nothing is learned
    behind. A loop goes on.
    """
    children: dict[Var | None, list[Var]] = defaultdict(list)
    for v, parent in graph.tree.items():
        children[parent].append(v)
    products = _products_before(graph)
    found: list[Var] = []
    starts: list[Var | None] = [None]
    while starts:
        line, node = [], starts.pop()
        while node is None or products[node]:
            line.append(node)
            before = [v for v in children[node] if products[v]]
            if not before:
                break
            node = _main(graph, before, products)
            others = (v for v in before if v is not node)
            starts += [v for v in others if products[v] > _LONGEST_BRANCH]
        found += _smallest_of_groups(graph, line[::-1], products)
    if ends:
        found = [v for v in found if not graph.is_last(v)]
    return sorted(found, key=graph.maker.__getitem__)


def _main(graph: Graph, nodes: list[Var], products: Mapping[Var | None, int]) -> Var:
    """That of several variables which the others are computed from, as a residual
    stream is; or the one behind most of the products."""
    first = min(nodes, key=lambda v: graph.maker.get(v, -1))
    if graph.behind(first).issuperset(nodes):
        return first
    return max(nodes, key=products.__getitem__)


def _products_before(graph: Graph) -> dict[Var | None, int]:
    """How many products with parameters each variable post-dominates."""
    products: dict[Var | None, int] = defaultdict(int)
    for i in {use.equation for use in graph.uses} | graph.opened:
        if graph.matters(i) and graph.is_product(i):
            for v in (*graph.chain(graph.after(i)), None):
                products[v] += 1
    for v in graph.carried:  # a residual stream begins there, or comes from before
        if v in graph.tree:
            for after in graph.chain(v):
                products[after] += _MANY
    return products


def _smallest_of_groups(
    graph: Graph, line: Sequence[Var | None], products: Mapping[Var | None, int]
) -> list[Var]:
    """The smallest variable of each group of a line, of equals the last.

    A group that keeps no more than the cut behind it would is one with the next.
    """
    memory = _memory_by(graph, set(line).__contains__)
    found: list[Var] = []
    kept = 0
    for _, nodes in itertools.groupby(line, products.__getitem__):
        group = [v for v in nodes if v in graph.maker]
        kept += sum(memory[v] for v in group)
        if group:
            smallest = min(reversed(group), key=size_of)
            if kept > size_in_bytes(smallest):
                found.append(smallest)
                kept = 0
    return found


def _memory_by(graph: Graph, chosen: Callable[[Var], bool]) -> dict[Var | None, int]:
    """What a reverse pass keeps before each of some variables, and after the last."""
    memory: dict[Var | None, int] = defaultdict(int)
    for i in range(len(graph.jaxpr.eqns)):
        if graph.matters(i) and i not in graph.opened:
            chain = graph.chain(graph.after(i))
            memory[next(filter(chosen, chain), None)] += graph.bytes_of(i)
    return memory


def _marked(graph: Graph, ends: bool) -> list[Var]:
    """Where the user has marked the program, if derivatives flow there."""
    del ends
    marks = (eqn.outvars[0] for eqn in graph.jaxpr.eqns if is_mark(eqn))
    return [v for v in marks if v in graph.tree]


def _best(graph: Graph, candidates: Sequence[Var], cuts: int) -> set[Var]:
    """At most so many cuts, by the rule of this module."""
    memory = _memory_by(graph, set(candidates).__contains__)
    groups = [memory[v] for v in (*candidates, None)]
    sums = [0]
    for bytes_of_group in groups:
        sums.append(sums[-1] + bytes_of_group)
    bounds = sorted({b - a for i, a in enumerate(sums) for b in sums[i + 1 :]})
    low, high = 0, len(bounds) - 1
    while low < high:
        middle = (low + high) // 2
        if _quietest(sums, candidates, cuts, bounds[middle]) is None:
            low = middle + 1
        else:
            high = middle
    return set(_quietest(sums, candidates, cuts, bounds[low]) or ())


def _quietest(
    sums: Sequence[int], cuts: Sequence[Var], count: int, bound: int
) -> list[Var] | None:
    """The cuts of least size, at most ``count``, that leave no segment over a bound."""
    ended: list[tuple[int, list[Var]]] = []
    best: dict[int, tuple[int, list[Var]]] = {0: (0, [])}  # by where the last cut is
    groups = len(cuts) + 1
    for _ in range(count + 1):
        final = [
            option
            for start, option in best.items()
            if sums[groups] - sums[start] <= bound
        ]
        longer = dict(best)
        for start, (size, taken) in best.items():
            for i in range(start, groups - 1):
                if sums[i + 1] - sums[start] > bound:
                    break
                option = size + size_of(cuts[i]), [*taken, cuts[i]]
                if i + 1 not in longer or option[0] < longer[i + 1][0]:
                    longer[i + 1] = option
        best, ended = longer, final
    return min(ended, key=lambda option: option[0])[1] if ended else None


# -- loops


def _open_scans(
    graph: Graph, candidates: Callable[[Graph, bool], list[Var]], required: bool
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
        opened, bodies = _open_scans(inside, candidates, required)
        cuts = candidates(opened, False)
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
    """Which inputs of the body of a scan are the same for every example.

    What a parameter adds to along the way is not: its derivative flows.
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
