"""Tree structures, by which ``jit`` tells programs apart, differ where classes do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack
from fomoh_jax._hyperdual.composite import Joined, Repeated
from fomoh_jax._hyperdual.deferred import Deferred
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.hessian_by_gradient import FirstDerivative
from fomoh_jax._hyperdual.local import Local
from fomoh_jax._hyperdual.local_pairs import AllLocal, LocalPairs
from fomoh_jax._hyperdual.low_rank import LowRank
from fomoh_jax._hyperdual.one_hot import OneHot
from fomoh_jax._hyperdual.pair_forms import Cross, Diagonal, FirstOrder, Pairs
from fomoh_jax._hyperdual.part_forms import Block, Offsets, Rows
from fomoh_jax._hyperdual.plans.adjoint import Sources
from fomoh_jax._hyperdual.slot_tables import Table
from fomoh_jax._hyperdual.trace_forms import DiagonalTrace, Trace, WeightedTrace
from tests.reference import normal

# One of each class, with as many leaves and the same static fields where it can be.
TWO, MATRIX = normal(2), normal(2, 2)
FORMS = [
    *(form(3) for form in (FirstOrder, Diagonal, Pairs, LocalPairs, AllLocal, Trace)),
    *(form(2, 3) for form in (Rows, Block)),
    *(Cross(), FirstDerivative(False)),
    *(form(TWO) for form in (WeightedTrace, DiagonalTrace)),
    Offsets(3, 2, jnp.array(0)),
    Sources(3, MATRIX, MATRIX, False),
]
DEFERRED = Deferred(TWO, jnp.square, (2,), jnp.dtype("float64"))
TABLE = Table(np.arange(2).reshape(1, 2))
CHANNELS = [
    *(ZERO, Stack(TWO)),
    *(DEFERRED, DEFERRED.not_before(None)),
    Local((TWO[None],), (TABLE,), 2),
    LowRank(normal(2, 3, 1), normal(2, 4, 1)),
    OneHot(TWO, jnp.arange(2), (4,)),
    Repeated(Stack(TWO), (2,)),
    Joined((Stack(TWO),), ((),), 0),
]


def concrete_classes_of(kind):
    """The library's classes of a kind that have instances."""
    found, of_kind = {kind}, kind.__subclasses__()
    found = found.union(*map(concrete_classes_of, of_kind))
    of_library = lambda c: c.__module__.startswith("fomoh_jax.")
    return {c for c in found if of_library(c) and not c.__abstractmethods__}


@pytest.mark.parametrize(("kind", "each"), [(Form, FORMS), (Channel, CHANNELS)])
def test_trees_of_different_classes_never_compare_equal(kind, each):
    assert set(map(type, each)) == concrete_classes_of(kind)
    for a, b in itertools.combinations(each, 2):
        assert jax.tree.structure(a) != jax.tree.structure(b)


@pytest.mark.parametrize("tree", [*FORMS, *CHANNELS], ids=lambda x: type(x).__name__)
def test_a_tree_is_put_together_again_and_equals_another_of_its_class(tree):
    leaves, structure = jax.tree.flatten(tree)
    again = structure.unflatten(leaves)
    assert type(again) is type(tree)
    assert jax.tree.structure(again) == structure
    assert hash(jax.tree.structure(again)) == hash(structure)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))


def test_trees_differ_by_what_is_static():
    assert jax.tree.structure(Trace(3)) != jax.tree.structure(Trace(4))
    a, b = (Stack(TWO, 0, (0, 1), size) for size in (3, 4))
    assert jax.tree.structure(a) != jax.tree.structure(b)


def test_leaves_have_the_names_of_their_fields_as_keys():
    ((path, _),) = jax.tree_util.tree_leaves_with_path({"w": Stack(TWO)})
    assert jax.tree_util.keystr(path) == "['w'].array"
