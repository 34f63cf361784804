"""What the library is compared with: ``jax.jvp`` of ``jax.jvp``."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fomoh_jax
from fomoh_jax import plans

RTOL = 1e-10
# A derivative that is zero comes out as a difference of numbers of order one.
ATOL = 1e-12


def slow(*values):
    """Parameters of a test that the quick suite leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


def partly_slow(names):
    """Names for a test, of which the quick suite takes one in three."""
    return [slow(name) if i % 3 else name for i, name in enumerate(names)]


def jitted(transformation):
    """The transformation in one compilation; eagerly it takes one per operation."""

    def transformed(fun, *args, **options):
        return jax.jit(lambda *a: transformation(fun, *a, **options))(*args)

    return transformed


def _second_jvp(fun, primals, t1, t2):
    first = lambda *xs: jax.jvp(fun, xs, t1)
    (out, d1), (d2, d12) = jax.jvp(first, primals, t2)
    return out, d1, d2, d12


def second_jvp(fun, primals, t1, t2):
    """``(fun, ∂fun·t1, ∂fun·t2, t1ᵀ ∂²fun t2)`` by nesting ``jax.jvp``."""
    return jitted(_second_jvp)(fun, primals, t1, t2)


def _nested_model(fun, primals, directions):
    def pair(t1, t2):
        return _second_jvp(fun, primals, t1, t2)

    columns = jax.vmap(pair, in_axes=(None, 0))
    value, d1, _, d12 = jax.vmap(columns, in_axes=(0, None))(directions, directions)
    first = lambda tree, depth: jax.tree.map(lambda x: x[(0,) * depth], tree)
    slope = jax.tree.map(lambda x: x[:, 0], d1)
    return fomoh_jax.QuadraticModel(first(value, 2), slope, d12)


def nested_model(fun, primals, directions):
    """Value, slope and curvature, every pair on its own."""
    return jitted(_nested_model)(fun, primals, directions)


def nested_shared(fun, primals, directions):
    """The best nesting: value and slopes are shared between the pairs."""
    along = lambda v: lambda *p: jax.jvp(fun, p, v)
    slopes = lambda *p: jax.vmap(lambda v: along(v)(*p), out_axes=(None, 0))(directions)
    row = lambda v: jax.jvp(slopes, primals, v)
    (value, slope), (_, curvature) = jax.vmap(row, out_axes=((None, None), 0))(
        directions
    )
    return fomoh_jax.QuadraticModel(value, slope, curvature)


def random_directions(primals, k, seed=0):
    """Gaussian directions like the primals."""
    leaves, structure = jax.tree.flatten(primals)
    return structure.unflatten(
        _normal((k, *jnp.shape(x)), jnp.result_type(x), (seed, i, k))
        for i, x in enumerate(leaves)
    )


def assert_close(actual, expected, rtol=RTOL, atol=ATOL):
    """Trees agree, each leaf to ``rtol`` of its largest element."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        a, e = np.asarray(a), np.asarray(e)
        assert a.dtype == e.dtype and a.shape == e.shape
        if e.dtype == jax.dtypes.float0:  # no derivative, and no value
            continue
        scale = np.max(np.abs(e), initial=0)
        assert np.all(np.isfinite(e))
        np.testing.assert_allclose(a, e, rtol=0, atol=atol + rtol * scale)


def assert_symmetric(curvature):
    """Equal to its transpose, bit for bit."""
    for leaf in jax.tree.leaves(curvature):
        if leaf.dtype != jax.dtypes.float0:
            np.testing.assert_array_equal(leaf, np.swapaxes(leaf, 0, 1))


def assert_agrees_with_nested_jvp(fun, *primals, k=3, jit=True):
    """Every transformation, on one function, in one compilation."""
    wrap = jax.jit if jit else lambda f: f
    directions = random_directions(primals, k)

    def ours(primals, directions):
        t1, t2 = (jax.tree.map(lambda x: x[i], directions) for i in (0, 1))
        return (
            fomoh_jax.quadratic_model(fun, primals, directions),
            fomoh_jax.quadratic_model(fun, primals, directions, plan=plans.forward(2)),
            fomoh_jax.directional_curvature(fun, primals, directions),
            fomoh_jax.hyper_jvp(fun, primals, t1, t2),
        )

    model = nested_model(fun, primals, directions)
    # All else that is compared is in the model.
    value, slope, curvature = jax.tree.map(np.asarray, model)
    at = lambda tree, *index: jax.tree.map(lambda x: x[index], tree)
    each = np.arange(k)
    diagonal = at(curvature, each, each)
    along = fomoh_jax.DirectionalCurvature(value, slope, diagonal)
    pair = (value, at(slope, 0), at(slope, 1), at(curvature, 0, 1))
    actual = wrap(ours)(primals, directions)
    assert_close(actual, (model, model, along, pair))
    assert_symmetric(actual[0].curvature)
    assert_symmetric(actual[1].curvature)


def assert_hyper_jvp_agrees(fun, *primals):
    """The classical hyper-dual number alone: a tenth of the time of all of them."""
    v, w = (
        jax.tree.map(lambda x: x[0], random_directions(primals, 1, seed))
        for seed in (0, 1)
    )
    ours = jitted(fomoh_jax.hyper_jvp)(fun, primals, v, w)
    assert_close(ours, second_jvp(fun, primals, v, w))


def normal(*shape, seed=0):
    """Standard normal numbers, float64; concrete also where called in a trace."""
    return _normal(shape, jnp.dtype("float64"), (seed,))


@functools.cache
def _normal(shape, dtype, seed):
    # By numpy: jax compiles a program for each shape, for longer than most tests take.
    draw = np.random.default_rng((*seed, *shape)).standard_normal
    numbers = draw(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        numbers = (numbers + 1j * draw(shape)) / 2**0.5
    with jax.ensure_compile_time_eval():
        return jnp.asarray(numbers, dtype)


@contextlib.contextmanager
def compilations():
    """The events of the compiler in its body."""
    seen = []

    def listener(event, _, **__):
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
