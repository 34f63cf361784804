"""Each form against its definition by indices."""

import jax.numpy as jnp
import numpy as np
import pytest

from fomoh_jax.hyperdual.forms import Cross, Diagonal, FirstOrder, Offsets, Pairs
from fomoh_jax.hyperdual.number import ZERO, Stack
from tests.reference import normal

FORMS = {
    "pairs": (Pairs(3), [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]),
    "diagonal": (Diagonal(3), [(0, 0), (1, 1), (2, 2)]),
    "cross": (Cross(), [(0, 1)]),
    "offsets": (
        Offsets(3, 2, jnp.array(1)),
        [(i, (i + offset) % 3) for offset in (1, 2) for i in range(3)],
    ),
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_products_are_what_the_index_pairs_say(name, axis):
    form, pairs = FORMS[name]
    a, b = normal(form.k, 2, 2), normal(form.k, 2, 2, seed=1)
    x, y = Stack(a).moved(axis), Stack(b)
    read = lambda stack: stack.moved(0).array
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
    (quadratic,) = form.quadratic(function, [x, y], [None, None], [axis])
    np.testing.assert_allclose(read(quadratic), a[i] @ b[j] + a[j] @ b[i])


@pytest.mark.parametrize("name", [*FORMS, "first_order"])
def test_a_product_with_zero_is_zero_and_not_computed(name):
    form = FirstOrder(3) if name == "first_order" else FORMS[name][0]
    x = Stack(normal(form.k, 2))
    assert form.product(x, ZERO) is ZERO
    assert form.product(ZERO, x) is ZERO
    assert form.cross(x, ZERO) is ZERO
    assert form.cross(ZERO, x) is ZERO
    assert form.bilinear(jnp.multiply, x, ZERO, 0) is ZERO
    assert form.quadratic(None, [ZERO], [None], [0]) == [ZERO]


def test_first_order_carries_no_seconds():
    form, x = FirstOrder(2), Stack(normal(2, 3))
    assert form.q == 0
    assert form.product(x, x) is ZERO and form.cross(x, x) is ZERO
    assert form.bilinear(jnp.multiply, x, x, 0) is ZERO
