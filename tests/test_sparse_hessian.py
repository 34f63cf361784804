"""Sparse Hessians: right, with the true pattern, and never dense on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.flatten_util import ravel_pytree

from fomoh_jax import hessian_sparsity, sparse_hessian
from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._operators import sparse
from tests.reference import assert_close, normal, partly_slow

D = 12
EDGES = np.random.default_rng(0).permuted(np.tile(np.arange(6), (8, 1)), axis=1)[:, :2]
MASK = np.arange(D) % 3 > 0
SQUARE, WIDE = normal(4, 4), normal(3, 5)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def minimal_surface(x, rows=3):
    u = x.reshape(rows, -1)
    across, down = u[1:, 1:] - u[1:, :-1], u[1:, 1:] - u[:-1, 1:]
    return jnp.sum(jnp.sqrt(1 + across**2 + down**2))


def springs(x, edges=EDGES):
    points = x.reshape(-1, 2)
    lengths = jnp.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=-1)
    return jnp.sum((lengths - 1) ** 2)


def blocks_by_vmap(x):
    block = lambda v: jnp.prod(jnp.tanh(v @ WIDE)) + v[0] ** 2
    return jnp.sum(jax.vmap(block)(x.reshape(-1, 3)))


def blocks_by_reshape(x):
    rows = x.reshape(-1, 4)
    return jnp.sum(jnp.sin(jnp.einsum("ni,ij,nj->n", rows, SQUARE, rows)))


def arrowhead(x):
    return jnp.sum((x[0] * x[1:] - 1) ** 2) + x[0] ** 4


def optimal_control(x):
    """Two states and a control at each time, by collocation."""
    state, control = jnp.split(x.reshape(-1, 3), [2], axis=1)
    step = jnp.tanh(state[:-1] @ SQUARE[:2, :2] + control[:-1] * SQUARE[2, :2])
    missed = state[1:] - state[:-1] - 0.1 * step
    return jnp.vdot(missed, missed) + 0.5 * jnp.sum(control**2)


def networks(x):
    """The same network of two hidden layers on each of four nodes."""
    hidden = jnp.tanh(jnp.tanh(x.reshape(-1, 3) @ normal(3, 20)) @ normal(20, 20))
    return jnp.sum(hidden @ normal(20))


def embedded_atoms(x):
    """A function of the sum over each node's edges."""
    i, j = EDGES.T
    density = jnp.zeros(D).at[i].add(jnp.exp(-((x[i] - x[j]) ** 2)))
    return jnp.sum(jnp.sqrt(1 + density)) + x[-1] ** 2


def boundary(x):
    """A gather, a scatter, and a slice at an index that JAX normalises."""
    inner = x.at[0].set(1.0)[jnp.arange(D) // 2]
    return jnp.sum(inner**2 * x) + lax.dynamic_index_in_dim(x, 2, keepdims=False) ** 3


def called(x):
    """Through jit, remat and rules of custom_jvp."""
    inner = jax.jit(lambda y: jnp.where(MASK, jax.nn.softplus(y), y**2))
    saved = jax.checkpoint(lambda y: y[::-1] * inner(y))(x)
    return jnp.sum(jnp.sin(saved) + jax.nn.relu(x) ** 2)


# What they store is what is not zero.
EXACT = {
    "rosenbrock": rosenbrock,
    "residuals": lambda x: (lambda r: r @ r)(x[1:] - x[:-1] ** 2),
    "roll": lambda x: jnp.sum(jnp.sin(x) * jnp.roll(x, 1) * jnp.roll(x, -2)),
    "diff": lambda x: jnp.sum(jnp.diff(x, n=2) ** 4),
    "padded": lambda x: jnp.sum(jnp.exp(jnp.pad(x[2:], 1, constant_values=1.0) * x)),
    "minimal surface": minimal_surface,
    "springs": springs,
    "blocks by vmap": blocks_by_vmap,
    "blocks by reshape": blocks_by_reshape,
    "arrowhead": arrowhead,
    "segments": lambda x: jnp.sum(jax.ops.segment_sum(x**2, np.arange(D) // 4, 3) ** 2),
    "networks": networks,
    "neighbours' sums": embedded_atoms,
    "a constant mask": lambda x: jnp.sum(jnp.where(MASK, x**3, 0) * jnp.roll(x, 1)),
    "optimal control": optimal_control,
    "boundary": boundary,
    "called": called,
    "quotients": lambda x: jnp.sum(x[1:] / (2 + x[:-1] ** 2) + jnp.atan2(x[1:], x[0])),
    "means of windows": lambda x: jnp.sum(jnp.mean(x.reshape(3, 4), 1) ** 3),
    "a constant factor": lambda x: (
        jnp.sum(jnp.arange(1, D + 1) * x * x) + x @ np.ones(D)
    ),
    "linear": lambda x: jnp.sum(3 * x - 1),
    "a mean, squared": lambda x: jnp.mean(x) ** 2 + jnp.sum(x**3),
    "dense layer": lambda x: jnp.sum(jnp.tanh(x @ normal(D, 3))),
    "logsumexp": jax.nn.logsumexp,
    "cumulative": lambda x: jnp.sum(jnp.cumsum(x) ** 3),
    "complex": lambda x: jnp.sum(jnp.exp(1j * x[1:]) * x[:-1]),
}

# Some entries that are stored may be zero: which ones depends on values, or what
# depends on what is not known.
MORE = {
    "where": lambda x: jnp.sum(jnp.where(x > 0, x**3, jnp.roll(x, 1) ** 2)),
    "maximum": lambda x: jnp.sum(jnp.maximum(x, jnp.roll(x, 1)) ** 2),
    "sort": lambda x: jnp.sum(jnp.sort(x) ** 2),
    "scan": lambda x: lax.scan(lambda c, v: (c + jnp.sin(v), v), 0.0, x)[0] ** 2,
    "cond": lambda x: lax.cond(x[0] > 0, lambda: x[0] ** 3, lambda: x[1] * x[2]),
    "while": lambda x: lax.while_loop(
        lambda c: c[0] < 9, lambda c: c * (2 + x**2), 1 + x**2
    )[1],
    "convolution": lambda x: jnp.sum(jnp.convolve(x, jnp.arange(3.0)) ** 4),
    "an index that varies": lambda x: x[jnp.argmax(x)] ** 2 * x[0],
    "duplicate updates": lambda x: jnp.sum(jnp.zeros(3).at[np.arange(D) % 3].set(x)),
}


def dense(fun, x):
    return np.asarray(jax.jit(lambda x: jax.jacfwd(jax.jacfwd(fun))(x))(x))


def places(matrix):
    """The indices of a BCOO, which must be sorted and unique."""
    pairs = [tuple(pair) for pair in np.asarray(matrix.indices).tolist()]
    assert matrix.indices_sorted and matrix.unique_indices
    assert pairs == sorted(set(pairs))
    return set(pairs)


# --- right --------------------------------------------------------------------------


@pytest.mark.parametrize("name", partly_slow([*EXACT, *MORE]))
def test_agrees_with_jax_and_is_symmetric_to_the_last_bit(name):
    fun, x = (EXACT | MORE)[name], normal(D)
    expected = dense(fun, x)
    matrix = jax.jit(sparse_hessian(fun))(x)
    actual = np.asarray(matrix.todense())
    assert_close(actual, expected)
    np.testing.assert_array_equal(actual, actual.T)
    true = set(zip(*(index.tolist() for index in np.nonzero(expected))))
    stored = places(matrix)
    assert stored == true if name in EXACT else stored >= true
    assert places(hessian_sparsity(fun)(x)) == stored


@pytest.mark.slow
def test_a_function_of_a_tree_is_one_of_its_elements_in_order():
    tree = {"b": normal(2, 3), "a": normal(), "c": (normal(4, seed=1),)}
    scale = lambda tree, by: (
        by * jnp.sum(tree["b"][0] ** 2 * tree["a"] * tree["c"][0][1:])
    )
    flat, unravel = ravel_pytree(tree)
    expected = dense(lambda x: scale(unravel(x), 3.0), flat)
    assert_close(jax.jit(sparse_hessian(scale))(tree, 3.0).todense(), expected)
    swapped = lambda by, tree: scale(tree, by)
    assert_close(sparse_hessian(swapped, 1)(3.0, tree).todense(), expected)


@pytest.mark.slow
def test_several_arguments_come_in_the_order_of_argnums():
    fun = lambda x, y: jnp.sum(x**2 * y[:3]) + y[3] ** 3
    x, y = normal(3), normal(4)
    along = lambda z: fun(z[4:], z[:4])
    expected = dense(along, jnp.concatenate([y, x]))
    assert_close(jax.jit(sparse_hessian(fun, (1, 0)))(x, y).todense(), expected)


@pytest.mark.slow
def test_keywords_are_passed_on_and_eager_is_as_under_jit():
    fun = lambda x, *, power: jnp.sum(x[1:] ** power * x[:-1])
    x = normal(5)
    eager = sparse_hessian(fun)(x, power=3)
    compiled = jax.jit(lambda x: sparse_hessian(fun)(x, power=3))(x)
    assert_close(eager.todense(), compiled.todense())
    np.testing.assert_array_equal(eager.indices, compiled.indices)


def test_what_is_stored_does_not_depend_on_values_eagerly_either():
    fun = lambda x: jnp.sum(jnp.where(x > 0, x**3, 0.0) * x[jnp.argsort(x)])
    at = [sparse_hessian(fun)(x).indices for x in (normal(4), -jnp.ones(4))]
    np.testing.assert_array_equal(*at)


@pytest.mark.slow
def test_vmap_shares_the_pattern():
    xs = normal(3, D)
    batch = jax.jit(jax.vmap(sparse_hessian(springs)))(xs)
    one = jax.jit(sparse_hessian(springs))
    for i, x in enumerate(xs):
        np.testing.assert_array_equal(batch.indices[i], one(x).indices)
        assert_close(batch.data[i], one(x).data)


@pytest.mark.slow
def test_it_can_be_differentiated():
    trace = lambda x: jnp.sum(sparse_hessian(rosenbrock)(x).data)
    full = lambda x: jnp.sum(jax.hessian(rosenbrock)(x))
    x = normal(5)
    assert_close(jax.jit(jax.grad(trace))(x), jax.jit(jax.grad(full))(x))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_data_has_the_dtype_of_the_arguments(dtype):
    x = jnp.ones(4, dtype)
    assert jax.eval_shape(sparse_hessian(rosenbrock), x).data.dtype == dtype
    mixed = {"a": x, "b": jnp.ones(2, "float32")}
    fun = lambda t: jnp.sum(t["a"] ** 2) + jnp.sum(t["b"] ** 2)
    assert jax.eval_shape(sparse_hessian(fun), mixed).data.dtype == "float32"


def test_an_index_that_is_traced_is_right_without_64_bits():
    differences = lambda i: lambda x: ((x[1:] - x[:-1]) ** 2)[i]
    with jax.enable_x64(False):
        of_index = jax.jit(lambda i: sparse_hessian(differences(i))(jnp.ones(4)))
        found = of_index(1).todense()
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = [[2, -2], [-2, 2]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 2])
def test_few_variables(size):
    fun = lambda x: jnp.sum(x**2) + jnp.sum(x[1:] * x[:-1])
    matrix = jax.jit(sparse_hessian(fun))(jnp.ones(size))
    assert matrix.shape == (size, size)
    assert_close(matrix.todense(), np.eye(size) + np.ones((size, size)))


MOVES = {
    "roll": lambda x: jnp.roll(x, 2),
    "reverse": lambda x: x[::-1],
    "transpose": lambda x: x.reshape(2, 3).T.reshape(-1),
    "gather": lambda x: x[np.array([0, 0, 3, 5, 1, 2])],
    "mask": lambda x: jnp.where(np.arange(6) < 4, x, 1.5),
    "predicate": lambda x: jnp.where(x > 0, x, 2 * jnp.roll(x, 1)),
    "differences": lambda x: jnp.diff(x, append=0.5),
    "row sums": lambda x: x + jnp.repeat(jnp.sum(x.reshape(3, 2), 1), 2),
    "first": lambda x: x * x[0],
    "neighbours": lambda x: x * jnp.roll(x, 1),
    "sine": lambda x: jnp.sin(x),
    "quotient": lambda x: x / (2 + jnp.roll(x, -1) ** 2),
    "matrix": lambda x: (x.reshape(3, 2) @ SQUARE[:2, :2]).reshape(-1),
    "scatter": lambda x: x.at[np.array([4, 1])].set(x[:2] ** 2),
}


@given(st.lists(st.sampled_from(sorted(MOVES)), min_size=1, max_size=5))
@settings(max_examples=6)
def test_random_compositions_of_local_operations_agree_with_jax(names):
    def fun(x):
        for name in names:
            x = MOVES[name](x)
        return jnp.sum(x**2)

    x = normal(6)
    expected = dense(fun, x)
    matrix = jax.jit(sparse_hessian(fun))(x)
    assert_close(matrix.todense(), expected, atol=1e-10 * max(1, abs(expected).max()))
    assert places(matrix) >= set(zip(*(i.tolist() for i in np.nonzero(expected))))


# --- in O(non-zeros) ------------------------------------------------------------------

LARGE = ("rosenbrock", "roll", "diff", "arrowhead", "residuals", "optimal control")


def sizes(jaxpr):
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield from (v.aval.size for v in eqn.outvars)
        for inner in programs_in(eqn.params):
            yield from sizes(inner)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_nothing_is_dense_at_any_time(name):
    n = 2001
    fun = EXACT[name]
    jaxpr = jax.make_jaxpr(sparse_hessian(fun))(jnp.ones(n))
    assert max(sizes(jaxpr)) < 40 * n
    assert max(np.size(const) for const in jaxpr.consts) < 40 * n


@pytest.mark.slow
def test_grids_and_graphs_are_not_dense_either():
    rows, n = 50, 2500
    edges = np.random.default_rng(1).integers(0, n // 2, (2 * n, 2))
    for fun in (lambda x: minimal_surface(x, rows), lambda x: springs(x, edges)):
        assert max(sizes(jax.make_jaxpr(sparse_hessian(fun))(jnp.ones(n)))) < 60 * n


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("name", ("rosenbrock", "residuals", "optimal control"))
def test_operations_grow_linearly(name):
    def flops(n):
        x = jax.ShapeDtypeStruct((n,), jnp.float32)
        compiled = jax.jit(sparse_hessian(EXACT[name])).lower(x).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(5001) < 10.5 * flops(501)


def test_the_pattern_needs_shapes_alone():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    pattern = hessian_sparsity(rosenbrock)(x)
    assert pattern.nse == 3 * 1000 - 2 and pattern.dtype == bool


def test_the_pattern_is_of_the_arguments_that_argnums_names():
    fun = lambda scale, x, *, y: scale * (rosenbrock(x) + y[0] * y[1])
    x, y = normal(D), normal(2)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    pattern = hessian_sparsity(fun, 1)(2.0, shape, y=y)
    assert places(pattern) == places(sparse_hessian(rosenbrock)(x))
    both = hessian_sparsity(fun, (0, 1))(2.0, x, y=y)
    assert places(both) == places(sparse_hessian(fun, (0, 1))(2.0, x, y=y))
    assert both.shape == (D + 1, D + 1)


# --- errors -------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [sparse_hessian, hessian_sparsity])
def test_bad_input_is_named(operator):
    call = lambda fun, x: operator(fun)(x)
    name = operator.__name__
    with pytest.raises(TypeError, match=f"{name} needs real arguments; argument 0"):
        call(jnp.sum, jnp.ones(3, complex))
    with pytest.raises(TypeError, match=f"{name} needs real floating-point arguments"):
        call(jnp.sum, jnp.ones(3, int))
    with pytest.raises(TypeError, match=r"one scalar; fun returns float64\[3\]"):
        call(jnp.sin, jnp.ones(3))
    with pytest.raises(TypeError, match="one scalar"):
        call(lambda x: (x[0], x[1]), jnp.ones(3))
    with pytest.raises(TypeError, match="dtype int"):
        call(lambda x: jnp.argmax(x), jnp.ones(3))


def test_too_many_entries_are_refused(monkeypatch):
    monkeypatch.setattr(sparse, "_MOST", 30)
    with pytest.raises(ValueError, match=r"at most 30 entries.* 12 variables has 34"):
        sparse_hessian(rosenbrock)(jnp.ones(12))


def test_intermediates_that_depend_on_too_much_are_refused_and_not_begun():
    with pytest.raises(ValueError, match=r"too many variables.*fomoh_jax\.hessian"):
        jax.eval_shape(sparse_hessian(jnp.var), jnp.ones(2000))


@pytest.mark.parametrize("operator", [sparse_hessian, hessian_sparsity])
def test_argnums_out_of_range_is_an_error(operator):
    with pytest.raises(ValueError, match="argnums names argument 1"):
        operator(rosenbrock, 1)(jnp.ones(3))
