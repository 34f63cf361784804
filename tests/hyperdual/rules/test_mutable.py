"""Mutable arrays against the same programs without them."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fomoh_jax
from tests.reference import assert_agrees_with_nested_jvp, assert_close, normal


def assert_same_model(mutable, immutable, x):
    directions = (normal(2, *x.shape, seed=9),)
    model = lambda f: fomoh_jax.quadratic_model(f, (x,), directions)
    expected = jax.jit(lambda: model(immutable))()
    assert_close(model(mutable), expected)
    assert_close(jax.jit(lambda: model(mutable))(), expected)


def test_reading_writing_and_adding():
    def mutable(x):
        ref = jax.new_ref(jnp.zeros_like(x))
        ref[...] = jnp.sin(x)
        ref[0] += x[1] * x[0]
        ref[1:3] = x[:2] ** 2
        jax.ref.addupdate(ref, 2, x[0] ** 3)
        jax.ref.addupdate(ref, x.astype(int)[0] * 0, 1.0)
        old = jax.ref.swap(ref, 1, 5.0)
        return jax.ref.freeze(ref) * x + old

    def immutable(x):
        y = jnp.sin(x).at[0].add(x[1] * x[0]).at[1:3].set(x[:2] ** 2)
        y = y.at[2].add(x[0] ** 3).at[0].add(1.0)
        return y.at[1].set(5.0) * x + y[1]

    assert_same_model(mutable, immutable, normal(4))


def test_in_loops_branches_and_calls():
    def mutable(x):
        ref, count = jax.new_ref(jnp.ones_like(x)), jax.new_ref(0)

        def step(i, _):
            ref[i] = jnp.sin(x[i]) * x[0] * ref[i]
            count[...] += 1

        lax.fori_loop(0, 3, step, None)
        lax.cond(x[0] < 9, lambda: ref.__setitem__(0, x[0] ** 3), lambda: None)

        @jax.jit
        def square(ref):
            ref[...] *= ref[...]

        square(ref)
        lax.while_loop(
            lambda i: i < 2, lambda i: (ref.__setitem__(i, ref[i] * x[1]), i + 1)[1], 0
        )
        return ref[...] * count[...]

    def immutable(x):
        y = (jnp.sin(x) * x[0]).at[0].set(x[0] ** 3) ** 2
        return y.at[:2].multiply(x[1]) * 3

    assert_same_model(mutable, immutable, normal(3))


def test_with_no_directions():
    def mutable(x):
        ref = jax.new_ref(jnp.zeros_like(x))
        ref[...] = jnp.sin(x)
        return ref[...]

    model = fomoh_jax.quadratic_model(mutable, (normal(3),), (jnp.zeros((0, 3)),))
    assert model.curvature.shape == (0, 0, 3)


def test_an_empty_array_that_is_filled_and_freed():
    def mutable(x):
        ref = jax.empty_ref(jax.ShapeDtypeStruct(x.shape, x.dtype))
        ref[...] = x**2
        y = ref[...]
        jax.ref.free_ref(ref)
        return y

    assert_same_model(mutable, jnp.square, normal(3))


@pytest.mark.slow
def test_as_nested_jvp_has_it():
    def fun(x):
        ref = jax.new_ref(x)

        def step(carry, y):
            ref[0] = ref[0] * y
            return carry * ref[0], carry

        return lax.scan(step, x[0], x)

    assert_agrees_with_nested_jvp(fun, normal(3))


def test_what_varies_cannot_be_written_into_an_array_from_outside():
    outside = jax.new_ref(jnp.zeros(3))

    def leak(x):
        outside[...] = x
        return x**2

    with pytest.raises(ValueError, match=r"made outside .* with jax\.new_ref"):
        fomoh_jax.hessian(leak)(normal(3))

    def look(x):
        outside[0] = 2.0
        return jnp.sum(x**2 * outside[...])

    expected = jnp.diag(jnp.array([4.0, 0, 0]))
    assert_close(fomoh_jax.hessian(look)(normal(3)), expected)
