"""Each form against its definition by indices."""

import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax._hyperdual.channels import ZERO, Stack
from fomoh_jax._hyperdual.form import Bilinear
from fomoh_jax._hyperdual.pair_forms import Cross, Diagonal, FirstOrder, Pairs
from fomoh_jax._hyperdual.part_forms import Block, Offsets, Rows
from tests.reference import normal

FORMS = {
    "pairs": (Pairs(3), [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]),
    "diagonal": (Diagonal(3), [(0, 0), (1, 1), (2, 2)]),
    "cross": (Cross(), [(0, 1)]),
    "rows": (Rows(4, 2), [(0, 0), (1, 1), (0, 1), (1, 2), (0, 2), (1, 3)]),
    "all_rows": (Rows(3, 3), [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)]),
    "offsets": (
        Offsets(3, 2, jnp.array(1)),
        [(i, (i + offset) % 3) for offset in (1, 2) for i in range(3)],
    ),
    "block": (Block(2, 3), [(i, 2 + j) for i in range(2) for j in range(3)]),
}


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_products_are_what_the_index_pairs_say(name, axis):
    form, pairs = FORMS[name]
    a, b = normal(form.k, 2, 2), normal(form.k, 2, 2, seed=1)
    x, y = Stack(a).moved(axis), Stack(b)
    a, b = np.asarray(a), np.asarray(b)
    read = lambda stack: np.asarray(stack.moved(0).array)
    i, j = np.array(pairs).T
    assert form.q == len(pairs)
    np.testing.assert_allclose(read(form.product(x, x)), a[i] * a[j])
    np.testing.assert_allclose(read(form.product(x, y)), a[i] * b[j])
    np.testing.assert_allclose(read(form.cross(x, y)), a[i] * b[j] + a[j] * b[i])
    np.testing.assert_allclose(read(form.cross(x, x)), 2 * a[i] * a[j])
    np.testing.assert_allclose(
        read(form.bilinear(jnp.matmul, x, y, axis)), a[i] @ b[j] + a[j] @ b[i]
    )
    function = lambda u, w, u2, w2: [u @ w2 + u2 @ w]
    (quadratic,) = form.quadratic(function, [x, y], [axis])
    np.testing.assert_allclose(read(quadratic), a[i] @ b[j] + a[j] @ b[i])


@pytest.mark.parametrize("name", [*FORMS, "first_order"])
def test_a_product_with_zero_is_zero_and_not_computed(name):
    form = FirstOrder(3) if name == "first_order" else FORMS[name][0]
    x = Stack(normal(form.k, 2))
    assert form.product(x, ZERO).is_zero
    assert form.product(ZERO, x).is_zero
    assert form.cross(x, ZERO).is_zero
    assert form.cross(ZERO, x).is_zero
    assert form.bilinear(jnp.multiply, x, ZERO, 0) is ZERO
    assert form.quadratic(jnp.multiply, [ZERO], [0]) == [ZERO]


def test_first_order_carries_no_seconds():
    form, x = FirstOrder(2), Stack(normal(2, 3))
    assert form.q == 0
    assert form.product(x, x).is_zero and form.cross(x, x).is_zero
    assert form.bilinear(jnp.multiply, x, x, 0) is ZERO


@pytest.mark.parametrize(
    "form",
    [Pairs(4), Rows(4, 2), Offsets(4, 2, jnp.array(0)), Offsets(4, 2, jnp.array(1))],
    ids=str,
)
def test_polarised_products_are_as_exact_as_the_products_themselves(form):
    # Of very different lengths, one of them zero, and not in proportion.
    lengths = np.array([1e-7, 1.0, 0.0, 1e7]), np.array([1e4, 1.0, 1e-3, 1e-6])
    a, b = (
        Stack(jnp.asarray(length[:, None, None] * np.asarray(normal(4, 3, 3, seed=i))))
        for i, length in enumerate(lengths)
    )
    direct = form.bilinear(jnp.matmul, a, b, 1).moved(0).array
    polarised = form.bilinear(Bilinear(jnp.matmul, polarise=True), a, b, 1).moved(0)
    i, j = (np.asarray(places) for places in form.pairs)
    size = lengths[0][i] * lengths[1][j] + lengths[0][j] * lengths[1][i]
    difference = np.asarray(polarised.array) - np.asarray(direct)
    error = np.max(np.abs(difference), axis=(1, 2))
    assert np.all(error <= 1e-13 * size)
