"""Random compositions of primitives against ``jvp`` of ``jvp``.

``FOMOH_PROGRAMS=2000 pytest tests/hyperdual/rules/test_random_programs.py`` draws more
of them than the 20 of the default run.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import fomoh_jax
from tests.reference import assert_close, nested_model, normal

PROGRAMS = int(os.environ.get("FOMOH_PROGRAMS", "20"))

# Four shapes that broadcast against each other, so that anything composes with anything
# and an eager evaluation compiles each operation a few times for all the programs.
SHAPES = ((3, 3), (3,), (1, 3), ())
MATRIX = normal(3, 3, seed=3)


def square(x):
    """Any value as a matrix, for operations that need one."""
    return jnp.broadcast_to(x, (3, 3)) * (1 + MATRIX)


UNARY = {
    "sin": jnp.sin,
    "tanh": jnp.tanh,
    "exp": lambda x: jnp.exp(jnp.tanh(x)),
    "log1p": lambda x: jnp.log1p(x**2),
    "sqrt": lambda x: jnp.sqrt(1 + x**2),
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "erf": lax.erf,
    "lgamma": lambda x: lax.lgamma(2 + jnp.tanh(x)),
    "cube": lambda x: jnp.tanh(x) ** 3,
    "reciprocal": lambda x: 1 / (2 + x**2),
    "negative": jnp.negative,
    "abs": jnp.abs,
    "sum": jnp.sum,
    "mean": lambda x: x - jnp.mean(x, keepdims=True),
    "cast": lambda x: x.astype("float32").astype("float64") * 0 + x,
    "stop_gradient": lambda x: x * lax.stop_gradient(jnp.cos(x)),
    "integers": lambda x: x * jnp.round(2 * x).astype(int),
    "clip": lambda x: jnp.clip(x, -0.7, 0.7) * x,
    "reduce_prod": lambda x: x * jnp.prod(jnp.tanh(x)),
    "complex": lambda x: jnp.real(jnp.exp(1j * x) * (x + 2j)),
    "jit": jax.jit(lambda x: jnp.sin(x) * x),
    "checkpoint": jax.checkpoint(lambda x: jnp.cos(x) * jnp.sum(x)),
    "vmap": lambda x: jax.vmap(lambda row: row * jnp.sum(row))(jnp.atleast_1d(x)),
    "grad": lambda x: jax.grad(lambda x: jnp.sum(jnp.tanh(x) * jnp.sum(x)))(x),
    "fori": lambda x: lax.fori_loop(0, 2, lambda i, c: jnp.sin(c) * x + i, x * 0),
    "while": lambda x: lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1]) * x), (0, x)
    )[1],
    "cond": lambda x: lax.cond(jnp.sum(x) > 0, jnp.sin, lambda x: jnp.ones_like(x), x),
    "switch": lambda x: lax.switch(
        jnp.int32(jnp.sum(x) > 0), [lambda x: x**2, lambda x: x * 0 + 1.0], x
    ),
    # Those that need a matrix.
    "transpose": lambda x: square(x).T,
    "flip": lambda x: jnp.flip(square(x), 0),
    "cumsum": lambda x: jnp.cumsum(square(x), axis=1),
    "cumprod": lambda x: jnp.cumprod(jnp.tanh(square(x)), axis=0),
    "sort": lambda x: jnp.sort(square(x), axis=1),
    "top_k": lambda x: lax.top_k(square(x), 3)[0],
    "softmax": lambda x: jax.nn.softmax(square(x), axis=1),
    "logsumexp": lambda x: jax.nn.logsumexp(square(x), axis=0),
    "max": lambda x: jnp.max(square(x), axis=1, keepdims=True) * square(x),
    "row": lambda x: square(x)[1],
    "gather": lambda x: square(x)[jnp.array([2, 0, 2])],
    "scatter_add": lambda x: square(x).at[jnp.array([0, 0, 1])].add(jnp.sin(square(x))),
    "scatter": lambda x: square(x).at[1].set(square(x)[0] ** 2),
    "dynamic_slice": lambda x: lax.dynamic_slice(square(x), (1, 0), (1, 3)),
    "pad": lambda x: jnp.pad(square(x), 1)[1:4, :3],
    "conv": lambda x: lax.conv_general_dilated(
        square(x)[None, None], square(x)[None, None, :2, :2], (1, 1), "SAME"
    )[0, 0],
    "pool": lambda x: lax.reduce_window(
        square(x), -jnp.inf, lax.max, (2, 2), (1, 1), "SAME"
    ),
    "einsum": lambda x: jnp.einsum("ij,kj->ik", jnp.tanh(square(x)), MATRIX),
    "scan": lambda x: lax.scan(
        lambda c, row: (jnp.sin(c) * row, c + row), jnp.ones(3), square(x)
    )[1],
    "scan_back": lambda x: lax.scan(
        lambda c, row: (c * jnp.tanh(row), c), x, square(x)[:2, 0], reverse=True
    )[0],
    "solve": lambda x: jnp.linalg.solve(4 * jnp.eye(3) + jnp.tanh(square(x)), MATRIX),
    "inverse": lambda x: jnp.linalg.inv(4 * jnp.eye(3) + jnp.tanh(square(x))),
    "cholesky": lambda x: jnp.linalg.cholesky(
        4 * jnp.eye(3) + jnp.tanh(square(x)) @ jnp.tanh(square(x)).T
    ),
}

BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": lambda x, y: x / (2 + y**2),
    "max": jnp.maximum,
    "min": jnp.minimum,
    "atan2": lambda x, y: jnp.arctan2(x, 1 + y**2),
    "pow": lambda x, y: (1 + x**2) ** jnp.tanh(y),
    "logaddexp": jnp.logaddexp,
    "where": lambda x, y: jnp.where(MATRIX > 0, x, y),
    "matmul": lambda x, y: jnp.tanh(square(x)) @ square(y),
    "dot": lambda x, y: jnp.tanh(square(x)) @ square(y)[0],
    "outer": lambda x, y: jnp.outer(square(x)[0], square(y)[:, 1]),
    "concatenate": lambda x, y: jnp.concatenate([square(x)[:1], square(y)[1:]]),
    "while_of_two": lambda x, y: lax.while_loop(
        lambda s: s[0] < 2,
        lambda s: (s[0] + 1, s[2], s[1] * x),
        (0, square(x), square(y) * x),
    )[2],
}


@st.composite
def programs(draw):
    """Steps ``(name, operation, operands)``; operands count back, 0 is the last."""
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        table = draw(st.sampled_from([UNARY, UNARY, BINARY]))
        name = draw(st.sampled_from(sorted(table)))
        arity = 1 if table is UNARY else 2
        steps.append((name, table[name], draw(st.tuples(*[st.integers(0, 4)] * arity))))
    return steps


def run(steps, *inputs):
    values = list(inputs)
    for _, operation, operands in steps:
        value = operation(*(values[-1 - i % len(values)] for i in operands))
        # Bounded, so that no value drowns the others' derivatives in rounding.
        values.append(value / (1 + 0.1 * lax.stop_gradient(jnp.abs(value))))
    return values[-1], jnp.sum(values[-1]) * jnp.sum(values[-2])


@settings(max_examples=PROGRAMS)
@given(
    programs(),
    st.permutations(SHAPES),
    st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    st.integers(0, 50),
)
def test_random_compositions_agree_with_nested_jvp(steps, shapes, varied, seed):
    inputs = [normal(*shape, seed=100 + seed + i) for i, shape in enumerate(shapes)]
    # Inputs that are held fixed, in every pattern, make the channels' zeros vary.
    directions = [
        normal(2, *shape, seed=200 + i) if vary else None
        for i, (shape, vary) in enumerate(zip(shapes, varied))
    ]
    fun = lambda *xs: run(steps, *xs)
    model, diagonal = jax.jit(
        lambda *a: (
            fomoh_jax.quadratic_model(fun, *a),
            fomoh_jax.directional_curvature(fun, *a).curvature,
        )
    )(inputs, directions)
    dense = [
        jnp.zeros((2, *x.shape)) if v is None else v for x, v in zip(inputs, directions)
    ]
    assert_close(model, nested_model(fun, tuple(inputs), tuple(dense)))
    each = np.arange(2)
    chosen = jax.tree.map(lambda c: np.asarray(c)[each, each], model.curvature)
    assert_close(diagonal, chosen)


def test_the_operations_themselves_are_finite():
    def results(x):
        each = {name: operation(x) for name, operation in UNARY.items()}
        return each | {name: fun(x, x + 1) for name, fun in BINARY.items()}

    for shape in SHAPES:
        for name, result in jax.jit(results)(normal(*shape, seed=5)).items():
            assert np.all(np.isfinite(result)), name
