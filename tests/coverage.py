"""JAX's own one-primitive programs, under our transformations and under nested jvp.

The installed jax carries thousands of them, in groups that are named like primitives.

    python -m tests.coverage

runs up to a dozen of each group, or four where they are slow, and writes the table of
what passed, and by which family of rules, to COVERAGE.md.
"""

import collections
import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)  # before the cases are made

from jax._src.internal_test_util import test_harnesses  # noqa: E402

import fomoh_jax  # noqa: E402
from fomoh_jax._hyperdual import interpreter, registry  # noqa: E402
from tests.reference import second_jvp  # noqa: E402

DOZEN = 12
# Groups whose programs take long to compile, the more so twice differentiated.
SLOW = {
    *("approx_top_k", "cholesky", "cummax", "cummin", "cumlogsumexp", "cumprod"),
    *("eigh", "lu", "qr", "svd"),
}
TABLE = pathlib.Path(__file__).parent.parent / "COVERAGE.md"

# Groups that the generic rule serves, and why no family does.
LEFT_TO_THE_GENERIC_RULE = {
    "cholesky": "jax 0.10 and 0.12 read an asymmetric perturbation differently, and an "
    "implicit rule, L Lᵀ = A, can only agree with one of them",
    "eigh": "eigenvectors are held by an orthogonality that no product of them states",
    "nextafter": "only recent versions of JAX have a derivative of it at all",
    "qr": "like eigh, by the orthogonality of Q",
    "random_gamma": "one operand is a key; its derivative is a loop for each sample",
    "reduce": "what it reduces with is any program of the user's",
    "reduce_window_add": "only a reduce_window from another start than zero; so are "
    "max and min, and mul, which has no primitive of its own",
    "reduce_window_max": "as reduce_window_add",
    "reduce_window_min": "as reduce_window_add",
    "reduce_window_mul": "as reduce_window_add",
    "scatter_mul": "a product at each index; JAX asks for unique ones",
    "svd": "like eigh, by the orthogonality of both factors",
}


class Outcome(NamedTuple):
    """What became of one case.

    Attributes:
      name: of the case.
      kind: "agrees" with nested jvp; "beyond" what nested jvp can do; "refused" by JAX
        and by us, with an error that names the primitive; "no derivative" to take.
      rules: families of the rules that were applied to numbers that vary.
    """

    name: str
    kind: str
    rules: frozenset[str] = frozenset()


def groups() -> dict[str, list[Any]]:
    """The cases of each group in real floating-point numbers, or else in complex."""
    table = collections.defaultdict(lambda: collections.defaultdict(list))
    for harness in test_harnesses.all_harnesses:
        # Nested jvp of these now and then hangs for good on the CPU (jaxlib 0.10.1).
        if "qr_multi_array" in harness.fullname and "200_100" in harness.fullname:
            continue
        table[harness.group_name][np.dtype(harness.dtype).kind].append(harness)
    wide = lambda hs: [h for h in hs if np.dtype(h.dtype).itemsize >= 4]
    return {
        name: wide(kinds["f"]) or kinds["c"] for name, kinds in sorted(table.items())
    }


def most(group: str) -> int:
    """How many cases of a group are run."""
    return 4 if group in SLOW else DOZEN


def choose(cases: Sequence[Any], count: int) -> list[Any]:
    """All of the cases, or that many at even distances."""
    places = np.linspace(0, len(cases) - 1, min(count, len(cases)))
    return [cases[int(i)] for i in places]


def run(harness: Any) -> Outcome:
    """One case against nested jvp.

    Raises:
      AssertionError: if the numbers differ, or an error does not name the primitive.
      Exception: what our transformations raise where nested jvp does not.
    """
    name = harness.fullname
    args = [jnp.asarray(a) for a in harness.dyn_args_maker(np.random.RandomState(0))]
    places = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.inexact)]
    if not places:
        return Outcome(name, "no derivative")

    def case(*xs):
        full = list(args)
        for i, x in zip(places, xs):
            full[i] = x
        return harness.dyn_fun(*full)

    def fun(*xs):  # so that operands come with second-order coefficients of their own
        return case(*(x + x**2 / 128 for x in xs))

    primals = tuple(args[i] for i in places)
    t1, t2 = (tuple(_tangents(primals, seed)) for seed in (1, 2))

    def ours(primals, t1, t2):
        directions = jax.tree.map(lambda a, b: jnp.stack([a, b]), t1, t2)
        return (
            fomoh_jax.hyper_jvp(fun, primals, t1, t2),
            fomoh_jax.quadratic_model(fun, primals, directions),
        )

    def theirs(fun):
        def nested(primals, t1, t2):
            out, d1, _, d12 = second_jvp(fun, primals, t1, t2)
            # The slope of the inner jvp's primal is another for eigh, whose derivative
            # is that of a symmetric matrix, along what is not symmetric.
            return out, d1, jax.jvp(fun, primals, t2)[1], d12

        return nested

    directions = jax.tree.map(lambda a, b: jnp.stack([a, b]), t1, t2)
    families = _families(case, primals, directions)
    kind = "agrees"
    expected = _attempt(theirs(fun), primals, t1, t2)
    try:
        four, model = jax.block_until_ready(jax.jit(ours)(primals, t1, t2))
    except Exception as error:
        notes = "".join(getattr(error, "__notes__", ()))
        if expected is None and "in the hyper-dual rule of primitive" in notes:
            return Outcome(name, "refused", families)
        raise
    if expected is None:
        # lax.clamp between scalars: JAX knows its derivative between whole arrays.
        spelled_out = lambda *xs: fun(*jnp.broadcast_arrays(*xs))
        kind, expected = "beyond", _attempt(theirs(spelled_out), primals, t1, t2)
    at = lambda tree, *index: jax.tree.map(lambda x: x[(*index, ...)], tree)
    entries = (model.value, *(at(model.slope, i) for i in (0, 1)))
    for actual in (four, (*entries, at(model.curvature, 0, 1))):
        _assert_agrees(actual, expected)
    return Outcome(name, kind, families)


def _attempt(function, *args) -> Any:
    """The result under jit, or None where it raises."""
    try:
        return jax.block_until_ready(jax.jit(function)(*args))
    except Exception:
        return None


def _tangents(primals: Sequence[Any], seed: int) -> Iterator[jax.Array]:
    random = np.random.RandomState(seed)
    for x in primals:
        t = random.randn(*x.shape)
        yield jnp.asarray(
            t + 1j * random.randn(*x.shape) if jnp.iscomplexobj(x) else t, x.dtype
        )


def _assert_agrees(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        a, e = np.asarray(a), np.asarray(e)
        assert a.dtype == e.dtype and a.shape == e.shape
        if a.dtype.kind not in "fc":
            np.testing.assert_array_equal(a, e)
            continue
        # Where both are at a pole, one may add two infinities that the other does not.
        finite = np.isfinite(e)
        np.testing.assert_array_equal(np.isfinite(a), finite)
        tolerance = (
            1e-10 if e.dtype.itemsize >= 8 * (1 + (e.dtype.kind == "c")) else 2e-5
        )
        size = np.max(np.abs(e[finite]), initial=0)
        np.testing.assert_allclose(
            a[finite], e[finite], rtol=0, atol=tolerance * (size + 0.01)
        )


def _families(fun, primals, directions) -> frozenset[str]:
    """The families of the rules that a function asks for, to second order."""
    with _watch() as families, contextlib.suppress(Exception):
        jax.eval_shape(
            lambda *a: fomoh_jax.quadratic_model(fun, *a), primals, directions
        )
    return frozenset(families)


@contextlib.contextmanager
def _watch() -> Iterator[set[str]]:
    """The families of the rules that are applied meanwhile, to second order."""
    families: set[str] = set()
    original = registry.find_rule

    def find_rule(primitive):
        rule = original(primitive)

        def watched(form, op, args):
            if form.q:
                families.add(rule.__module__.rpartition(".")[2])
            return rule(form, op, args)

        return watched

    registry.find_rule = find_rule
    interpreter.staged.cache_clear()
    try:
        yield families
    finally:
        registry.find_rule = original


def row(group: str, outcomes: Sequence[Outcome]) -> str:
    """A line of the table."""
    count = collections.Counter(outcome.kind for outcome in outcomes)
    rules = sorted(set().union(*(outcome.rules for outcome in outcomes)) - {"calls"})
    numbers = [len(outcomes)] + [count[k] for k in ("agrees", "beyond", "refused")]
    return f"| {group} | {' | '.join(map(str, numbers))} | {', '.join(rules)} |"


HEADER = """\
# Coverage

JAX's own test harness, up to a dozen float32 and float64 cases of each group (four
where they are slow to compile; complex ones where a group has no other), compared with
`jax.jvp` of `jax.jvp`: `hyper_jvp` and `quadratic_model` under `jit`, of `x + x²/128`
for each operand, to 1e-10 in float64 and 2e-5 in float32 of the largest element; where
a number is not finite, neither is the other. *Agrees*: the same numbers. *Beyond*:
nested jvp raises, ours agrees with nested jvp of the operands broadcast to one shape.
*Refused*: nested jvp raises, and so does ours, by the primitive's name. Groups of
integers alone are left out. Written by `python -m tests.coverage`; the slow tests check
that each line still holds.

Left to the generic rule (`jvp` of `jvp`, over the pairs), and why:

{left}
"""


def main() -> None:
    lines, twice = [], 0
    for group, cases in groups().items():
        outcomes = [run(case) for case in choose(cases, most(group))]
        outcomes = [o for o in outcomes if o.kind != "no derivative"]
        if outcomes:
            lines.append(row(group, outcomes))
            twice += any(o.kind == "agrees" for o in outcomes)
            print(lines[-1], file=sys.stderr, flush=True)
    section = [
        f"## jax {jax.__version__}",
        "",
        f"JAX differentiates cases of {twice} groups twice; all of those cases agree.",
        "",
        "| group | cases | agrees | beyond | refused | rules |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        *lines,
    ]
    reasons = "\n".join(
        f"- `{name}`: {why}." for name, why in sorted(LEFT_TO_THE_GENERIC_RULE.items())
    )
    others = []
    if TABLE.exists():
        sections = TABLE.read_text().split("\n## ")[1:]
        others = [s for s in sections if not s.startswith(f"jax {jax.__version__}\n")]
    sections = sorted([*("## " + s.strip() for s in others), "\n".join(section)])
    TABLE.write_text(HEADER.format(left=reasons) + "\n" + "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
