"""The variables at which a program may be cut.

Of the variables through which derivatives flow, those on the *line* lead to the result.
At each step back it goes to the variable that the others are computed from, as a
residual stream is, or else to where most of the products with parameters are. Between
one such product and the next, the variables of the line are one group. The smallest of
a group, of equals the last, is its candidate: behind a relu or a pooling, not before.

A branch off the line (attention beside a residual stream) belongs to the group in which
it comes back. A branch with more than eight products has a line of its own.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from jax.extend.core import Var

from fomoh_jax._activations.graph import Graph, size_in_bytes, size_of
from fomoh_jax._activations.program import is_mark

# A branch of a residual block has up to four products with parameters, or some more if
# it is gated or a mixture; an encoder beside a decoder has more.
_LONGEST_BRANCH = 8
# The number of products that count as lying before a variable that a loop carries, or
# that an example begins with: more than any branch has.
_MANY = 1000


def candidates(graph: Graph, ends: bool) -> list[Var]:
    """The variables at which a program may be cut, in its order.

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
    """The variable that the others are computed from, as a residual stream is.

    If there is none, the one behind most of the products.
    """
    first = min(nodes, key=lambda v: graph.maker.get(v, -1))
    if graph.behind(first).issuperset(nodes):
        return first
    return max(nodes, key=products.__getitem__)


def _products_before(graph: Graph) -> dict[Var | None, int]:
    """The number of products with parameters that each variable post-dominates."""
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

    A group that keeps no more than the cut behind it would is one with the next, unless
    that is a loop.
    """
    memory = graph.memory_by(set(line).__contains__)
    behind_loops = set(map(graph.after, graph.opened))
    found: list[Var] = []
    kept = 0
    groups = [list(nodes) for _, nodes in itertools.groupby(line, products.__getitem__)]
    for nodes, following in itertools.zip_longest(groups, groups[1:], fillvalue=[None]):
        group = [v for v in nodes if v in graph.maker]
        kept += sum(memory[v] for v in group)
        if group:
            smallest = min(reversed(group), key=size_of)
            if kept > size_in_bytes(smallest) or following[0] in behind_loops:
                found.append(smallest)
                kept = 0
    return found


def marked(graph: Graph, ends: bool) -> list[Var]:
    """The variables that the user has marked, if derivatives flow there."""
    del ends
    marks = (eqn.outvars[0] for eqn in graph.jaxpr.eqns if is_mark(eqn))
    return [v for v in marks if v in graph.tree]
