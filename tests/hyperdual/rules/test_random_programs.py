"""Random compositions of primitives against ``jvp`` of ``jvp``."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import fomoh_jax
from tests.reference import assert_agrees_with_nested_jvp, assert_close, normal

# Every value of a program is a 3×3 matrix, so that anything composes with anything and
# an eager evaluation compiles each operation once for all the programs.
MATRIX = normal(3, 3, seed=3)

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
    "cube": lambda x: jnp.tanh(x) ** 3,
    "reciprocal": lambda x: 1 / (2 + x**2),
    "negative": jnp.negative,
    "transpose": jnp.transpose,
    "flip": lambda x: jnp.flip(x, 0),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "cumprod": lambda x: jnp.cumprod(jnp.tanh(x), axis=0),
    "sort": lambda x: jnp.sort(x, axis=1),
    "softmax": lambda x: jax.nn.softmax(x, axis=1),
    "logsumexp": lambda x: x - jax.nn.logsumexp(x, axis=0),
    "mean": lambda x: x - jnp.mean(x, axis=0, keepdims=True),
    "max": lambda x: x * jnp.max(x, axis=1, keepdims=True),
    "gather": lambda x: x[jnp.array([2, 0, 2])],
    "scatter_add": lambda x: x.at[jnp.array([0, 0, 1])].add(jnp.sin(x)),
    "scatter": lambda x: x.at[1].set(x[0] ** 2),
    "clip": lambda x: jnp.clip(x, -0.7, 0.7) * x,
    "reduce_prod": lambda x: x * jnp.prod(jnp.tanh(x)),
    "stop_gradient": lambda x: x * lax.stop_gradient(jnp.cos(x)),
    "jit": jax.jit(lambda x: jnp.sin(x) * x),
    "checkpoint": jax.checkpoint(lambda x: jnp.cos(x) @ x),
    "scan": lambda x: lax.scan(
        lambda c, row: (jnp.sin(c) * row, c + row), jnp.ones(3), x
    )[1],
    "while": lambda x: lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1]) * x), (0, x)
    )[1],
    "cond": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda x: x * MATRIX, x),
    "solve": lambda x: jnp.linalg.solve(4 * jnp.eye(3) + jnp.tanh(x), MATRIX),
    "inverse": lambda x: jnp.linalg.inv(4 * jnp.eye(3) + jnp.tanh(x)),
}

BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "matmul": lambda x, y: jnp.tanh(x) @ y,
    "div": lambda x, y: x / (2 + y**2),
    "max": jnp.maximum,
    "min": jnp.minimum,
    "atan2": lambda x, y: jnp.arctan2(x, 1 + y**2),
    "pow": lambda x, y: (1 + x**2) ** jnp.tanh(y),
    "where": lambda x, y: jnp.where(MATRIX > 0, x, y),
    "outer": lambda x, y: jnp.einsum("i,j->ij", x[0], y[:, 1]),
    "logaddexp": jnp.logaddexp,
    "concatenate": lambda x, y: jnp.concatenate([x[:1], y[1:]]),
}


@st.composite
def programs(draw):
    """A list of steps ``(operation, operands)``; operands count back, 0 is the last."""
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        table = draw(st.sampled_from([UNARY, UNARY, BINARY]))
        name = draw(st.sampled_from(sorted(table)))
        arity = 1 if table is UNARY else 2
        steps.append((name, table[name], draw(st.tuples(*[st.integers(0, 3)] * arity))))
    return steps


def run(steps, constant_first, x):
    # One operand has no tangents, so that the zero patterns of channels vary too.
    values = [MATRIX, x] if constant_first else [x, MATRIX]
    for _, operation, operands in steps:
        values.append(operation(*(values[-1 - i % len(values)] for i in operands)))
        # Bounded, so that no value drowns the others' derivatives in rounding.
        values[-1] = values[-1] / (1 + 0.1 * lax.stop_gradient(jnp.abs(values[-1])))
    return values[-1]


@settings(max_examples=200)
@given(programs(), st.booleans(), st.integers(0, 50))
def test_random_compositions_agree_with_nested_jvp(steps, constant_first, seed):
    x = normal(3, 3, seed=100 + seed)
    fun = lambda x: run(steps, constant_first, x)
    assert_agrees_with_nested_jvp(fun, x, k=2, jit=False)
    assert_close(fomoh_jax.hessian(fun)(x), jax.jacfwd(jax.jacfwd(fun))(x))


def test_the_operations_themselves_are_finite():
    for operation in UNARY.values():
        assert np.all(np.isfinite(operation(MATRIX)))
