"""Products of arrays, in every layout of their dimensions."""

import jax
import jax.numpy as jnp
from jax import lax

import fomoh_jax
from tests.reference import assert_agrees_with_nested_jvp, normal

SIZES = {"b": 2, "c": 3, "d": 4, "m": 2, "r": 5, "n": 3}
# Batch b; contracted c and d; free m and r of the first operand, n of the second.
LAYOUTS = [
    ("brcd", "bncd"),
    ("bcdr", "bncd"),  # across: b · a needs no transpose
    ("mbdrc", "nbdc"),
    ("cmr", "nc"),
    ("cr", "bnc"),
    ("c", "nc"),
    ("bcr", "bc"),
    ("brcd", "bcdn"),
    ("cbr", "ncb"),
]


def product(a, b, first, second):
    over = [x for x in first if x in "cd" and x in second]
    batch = [x for x in first if x == "b" and x in second]
    places = lambda dims: tuple(tuple(map(x.index, dims)) for x in (first, second))
    precision = (lax.Precision.HIGHEST, lax.Precision.DEFAULT)
    return lax.dot_general(a, b, (places(over), places(batch)), precision=precision)


def test_every_layout_agrees_with_nested_jvp():
    """Operands with seconds, that are in places larger and smaller than the result."""
    shape = lambda dims: tuple(SIZES[x] for x in dims)
    operands = [tuple(normal(*shape(dims)) for dims in pair) for pair in LAYOUTS]

    def products(operands):
        curved = lambda x: x + x**2 / 8
        return [
            product(curved(a), jnp.tanh(b), *pair)
            for (a, b), pair in zip(operands, LAYOUTS)
        ]

    assert_agrees_with_nested_jvp(products, operands)


def test_an_algorithm_that_tells_the_operands_apart_is_kept():
    algorithm = lax.DotAlgorithm(jnp.float32, jnp.float32, jnp.float32, 1, 1, 1, False)

    def loss(a, b):
        numbers = (((1,), (2,)), ((0,), (0,)))  # across
        return jnp.sum(lax.dot_general(a, b, numbers, precision=algorithm) ** 2)

    primals = jnp.ones((2, 4, 3), jnp.float32), jnp.ones((2, 9, 4), jnp.float32)
    directions = tuple(jnp.stack([x, x]) for x in primals)
    model = lambda *args: fomoh_jax.quadratic_model(loss, *args)
    # The CPU has no such algorithm: as a program for another platform.
    traced = jax.jit(model).trace(primals, directions)
    assert "dot_general" in traced.lower(lowering_platforms=("cuda",)).as_text()
