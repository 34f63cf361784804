"""Dtypes, weak types, empty arrays and the corners of functions, as JAX has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fomoh_jax
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    assert_hyper_jvp_agrees,
    jitted,
    nested_model,
    normal,
    second_jvp,
    slow,
)

pytestmark = pytest.mark.optimised

PRECISIONS = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.slow
@pytest.mark.parametrize("narrow", PRECISIONS)
@pytest.mark.parametrize("wide", ["float32", slow("float64")])
def test_precisions_mixed_inside_one_program(narrow, wide):
    def fun(x, y):
        h = jnp.sin(x * 1.5).astype(wide) * y
        return jnp.sum(h) * 2.0, (h * h).astype(narrow), x * 2

    x, y = normal(3).astype(narrow), normal(3, seed=1).astype(wide)
    v = normal(2, 3, seed=2).astype(narrow), normal(2, 3, seed=3).astype(wide)
    ours = jitted(fomoh_jax.quadratic_model)(fun, (x, y), v)
    theirs = nested_model(fun, (x, y), v)
    eps = max(float(jnp.finfo(d).eps) for d in (narrow, wide))
    as_double = lambda tree: jax.tree.map(lambda a: np.asarray(a, "float64"), tree)
    dtypes = lambda tree: jax.tree.map(lambda a: (a.dtype, a.weak_type), tree)
    assert dtypes(ours) == dtypes(theirs)
    assert_close(as_double(ours), as_double(theirs), rtol=max(20 * eps, 1e-10))


@pytest.mark.slow
def test_weak_types_are_kept_as_nested_jvp_keeps_them():
    programs = [
        lambda x, y: x * 2,
        lambda x, y: x * y,
        lambda x, y: jnp.where(x > 0, x, 1.0) ** 2,
        lambda x, y: jnp.sin(x) + y * x,
        lambda x, y: jax.lax.fori_loop(0, 3, lambda _, c: c * x, x * 1.0),
        lambda x, y: jax.lax.cond(x > 0, lambda x: x * x, lambda x: x, x),
        lambda x, y: jax.jit(lambda x: x / (1 + x))(x),
        lambda x, y: jax.nn.relu(x) * x,
    ]
    weak, narrow = 0.7, jnp.bfloat16(0.3)  # a Python scalar does not widen a bfloat16
    for fun in programs:
        tangents = (weak, narrow)
        kinds = [
            [
                (a.dtype, a.weak_type)
                for a in jax.jit(jvp, static_argnums=0)(
                    fun, (weak, narrow), tangents, tangents
                )
            ]
            for jvp in (fomoh_jax.hyper_jvp, second_jvp)
        ]
        assert kinds[0] == kinds[1]


def test_integers_booleans_and_keys_pass_through():
    def fun(key, x, n, flags):
        noise = jax.random.normal(key, x.shape)
        chosen = jnp.where(flags, x, noise * x**2)
        return chosen[n % 3], n + 1, ~flags, jax.random.split(key)

    args = jax.random.key(0), normal(3), jnp.array(4), jnp.array([True, False, True])
    directions = (None, normal(2, 3), None, None)
    model = jitted(fomoh_jax.quadratic_model)(fun, args, directions)
    only = lambda x: fun(args[0], x, *args[2:])[0]
    expected = nested_model(only, args[1:2], directions[1:2])
    assert_close([part[0] for part in model], list(expected))
    out = jax.jit(fun)(*args)
    for place in (1, 2):
        np.testing.assert_array_equal(model.value[place], out[place])
        assert model.slope[place].dtype == jax.dtypes.float0
        assert model.slope[place].shape == (2, *out[place].shape)
    assert jax.dtypes.issubdtype(model.value[3].dtype, jax.dtypes.prng_key)


def test_derivatives_of_scalar_integers_can_leave_a_jit():
    fun = lambda x: (x**2, jnp.int32(x))
    out = jax.jit(lambda x: fomoh_jax.hyper_jvp(fun, (x,), (x,), (x,)))(3.0)
    assert out[0] == (9.0, 3) and out[3][0] == 18.0
    assert out[3][1].dtype == jax.dtypes.float0 and out[3][1].shape == ()


def test_complex_numbers_inside_a_real_function():
    def power_spectrum(x):
        spectrum = jnp.fft.rfft(jnp.sin(x))
        return jnp.abs(spectrum) ** 2, jnp.sum(jnp.angle(spectrum[1:]))

    assert_agrees_with_nested_jvp(power_spectrum, normal(6))
    rotation = lambda x: jnp.real(jnp.exp(1j * x) * jnp.conj(x + 2j) / (1 + 1j * x))
    assert_agrees_with_nested_jvp(rotation, normal(3))
    polynomial = lambda z: (z**3 + jnp.conj(z) * z, jnp.abs(z))
    assert_agrees_with_nested_jvp(polynomial, normal(3) + 1j * normal(3, seed=1))


@pytest.mark.slow
def test_empty_arrays_scalars_and_no_directions():
    fun = lambda x: jnp.sum(jnp.sin(x) * x)
    model_of = jitted(fomoh_jax.quadratic_model)
    empty = model_of(fun, (jnp.zeros((0, 3)),), (jnp.ones((2, 0, 3)),))
    np.testing.assert_array_equal(empty.curvature, np.zeros((2, 2)))
    hessian = jax.jit(fomoh_jax.hessian(fun))
    assert hessian(jnp.zeros(0)).shape == (0, 0)
    assert hessian(0.3).shape == ()
    for directions in (jnp.zeros((0, 3)), jnp.zeros((1, 3))):
        model = model_of(fun, (normal(3),), (directions,))
        assert model.curvature.shape == (len(directions),) * 2
        assert not np.any(model.curvature)


CORNERS = {
    "0²": (lambda x: x**2, 0.0),
    "0³": (lambda x: x**3, 0.0),
    "0^2.0": (lambda x: x**2.0, 0.0),
    "0^array": (lambda x: x ** jnp.array(2.0), 0.0),
    "0⁰": (lambda x: x**0, 0.0),
    "0^x": (lambda x: 0.0**x, 2.0),
    "√0": (jnp.sqrt, 0.0),
    "∛0": (jnp.cbrt, 0.0),
    "|0|": (jnp.abs, 0.0),
    "log 0": (jnp.log, 0.0),
    "1/0": (lambda x: 1 / x, 0.0),
    "x/x": (lambda x: x / x, 0.0),
    "acos 1": (jnp.arccos, 1.0),
    "atan2(0, 0)": (lambda x: jnp.arctan2(x, x), 0.0),
    "sinc 0": (jnp.sinc, 0.0),
    "sign 0": (jnp.sign, 0.0),
    "max(0, 0)": (lambda x: jnp.maximum(x, 0.0) * x, 0.0),
    "max(x, x)": (lambda x: jnp.maximum(x, x) * x, 1.0),
    "relu 0": (jax.nn.relu, 0.0),
    "norm 0": (lambda x: jnp.linalg.norm(jnp.stack([x, 2 * x])), 0.0),
    "where": (lambda x: jnp.where(x > 0, x / x, 0.0), 0.0),
    "logaddexp(x, x)": (lambda x: jnp.logaddexp(x, x), 0.0),
    "logaddexp(x, -inf)": (lambda x: jnp.logaddexp(x, -jnp.inf), 0.0),
    "clip": (lambda x: jnp.clip(x, 0.0, 1.0) * x, 1.0),
    "modulo": (lambda x: x % 1.0, 0.0),
    "xlogy": (lambda x: jax.scipy.special.xlogy(x, x), 0.0),
    "exp inf": (lambda x: jnp.exp(x), jnp.inf),
    "nan": (lambda x: jnp.sin(x) * x, jnp.nan),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CORNERS)
def test_corners_are_those_of_jax(name):
    fun, x = CORNERS[name]
    x, one = jnp.array(x), jnp.array(1.0)
    ours = jitted(fomoh_jax.hyper_jvp)(fun, (x,), (one,), (one,))
    theirs = second_jvp(fun, (x,), (one,), (one,))
    np.testing.assert_array_equal(np.array(ours), np.array(theirs))


@pytest.mark.slow
def test_ties_are_broken_as_in_jax():
    tied = jnp.array([1.0, 2.0, 2.0, 1.0])
    for fun in (
        lambda x: jnp.max(x) * x,
        lambda x: jnp.sort(x) ** 2,
        lambda x: jax.lax.top_k(x**2, 2)[0],
        lambda x: jax.lax.cummax(x) * x,
        lambda x: jnp.median(x) ** 2,
        lambda x: jax.ops.segment_max(x**2, jnp.array([0, 0, 0, 1]), 2),
    ):
        assert_hyper_jvp_agrees(fun, tied)
