"""The choice of cuts among candidates: the least memory, and then the least noise.

    minimise  (max over blocks of the bytes of their activations,  Σ size(cut))

``Σ size(cut) / (examples · probes)`` is what the variance of the estimate, relative to
the square of the gradient, is proportional to.
"""

from collections.abc import Sequence

from jax.extend.core import Var

from fomoh_jax._activations.graph import Graph, size_of


def best_cuts(graph: Graph, candidates: Sequence[Var], cuts: int) -> set[Var]:
    """At most ``cuts`` of the candidates, by the rule of this module."""
    memory = graph.memory_by(set(candidates).__contains__)
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
