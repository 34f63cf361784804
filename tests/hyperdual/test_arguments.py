"""Bad input gets an error at the call that names what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fomoh_jax
from fomoh_jax import plans

X = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
V = {"w": jnp.ones((4, 2, 3)), "b": jnp.ones((4, 3))}


def loss(x):
    return jnp.sum(x["w"] * x["b"])


def model(primals=(X,), directions=(V,), **kwargs):
    return fomoh_jax.quadratic_model(loss, primals, directions, **kwargs)


def fails(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.slow
def test_good_input_passes():
    assert model().curvature.shape == (4, 4)


def test_primals_that_are_no_tuple():
    fails(TypeError, r"primals must be a tuple.*got dict.*\(x,\)", lambda: model(X, V))


def test_primals_that_fun_does_not_take():
    call = lambda: model((X, X), (V, V))
    fails(TypeError, r"primals has 2 entries.*\(x\) of fun", call)


def test_directions_that_are_no_tuple():
    fails(TypeError, "directions must be a tuple.*got dict", lambda: model((X,), V))


def test_too_few_directions():
    fun = lambda x, y: x * y
    call = lambda: fomoh_jax.quadratic_model(fun, (1.0, 2.0), (jnp.ones(3),))
    fails(TypeError, "primals has 2, directions has 1.*None", call)


def test_directions_of_another_structure():
    call = lambda: model(directions=({"w": V["w"]},))
    match = r"directions\[0\] must have the structure of primals\[0\].*expected.*got"
    fails(TypeError, match, call)
    fails(TypeError, match, lambda: model(directions=(V["w"],)))


def test_directions_of_another_shape():
    call = lambda: model(directions=({**V, "w": jnp.ones((4, 3, 2))},))
    match = r"directions\[0\]\['w'\] must have shape \[k, 2, 3\].*got \[4, 3, 2\]"
    fails(ValueError, match, call)
    flat = lambda: model(directions=({**V, "w": jnp.ones((2, 3))},))
    fails(ValueError, r"\['w'\] must have shape \[k, 2, 3\].*got \[2, 3\]", flat)


def test_directions_that_disagree_on_k():
    call = lambda: model(directions=({**V, "w": jnp.ones((5, 2, 3))},))
    fails(ValueError, r"agree on the number of directions k.*\['w'\] has 5", call)


def test_directions_of_another_dtype():
    call = lambda: model(directions=({**V, "b": jnp.ones((4, 3), "float32")},))
    match = r"directions\[0\]\['b'\] must have the dtype of its primal, float64; got"
    fails(TypeError, match, call)


def test_no_direction_at_all():
    fails(ValueError, "every argument is held fixed", lambda: model(directions=(None,)))


def test_a_direction_for_integers():
    fun = lambda n: 2.0 * n
    call = lambda: fomoh_jax.quadratic_model(fun, (jnp.array(1),), (jnp.ones(2),))
    fails(TypeError, "None or have dtype float0.*int64", call)
    float0 = np.zeros((4, 3), jax.dtypes.float0)
    call = lambda: model(directions=({**V, "b": float0},))
    fails(TypeError, r"\['b'\] has dtype float0, but its primal can vary", call)


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_chunk_size_that_is_not_positive(chunk_size):
    match = "chunk_size must be at least 1; got"
    fails(ValueError, match, lambda: model(plan=plans.forward(chunk_size)))


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1.5, "2"])
def test_chunk_size_that_is_no_integer(chunk_size):
    match = "chunk_size must be a Python integer; got"
    fails(TypeError, match, lambda: model(plan=plans.forward(chunk_size)))
    assert model(plan=plans.forward(np.int64(2))).curvature.shape == (4, 4)


def test_what_is_no_plan():
    fails(
        TypeError,
        'plan must be "auto" or a plan.*forget',
        lambda: model(plan=plans.adjoint),
    )
    fails(TypeError, "mesh_axis must be the name of an axis", lambda: plans.split(2))


def test_tangents_are_named_in_errors():
    def call(t1, t2):
        return lambda: fomoh_jax.hyper_jvp(loss, (X,), t1, t2)

    fails(TypeError, "tangents1 must be a tuple", call(X, (X,)))
    fails(TypeError, r"tangents2\[0\] must have the structure", call((X,), ({},)))
    match = r"tangents2\[0\]\['b'\] must have shape \[3\], like its primal; got \[4\]"
    fails(ValueError, match, call((X,), ({**X, "b": jnp.ones(4)},)))


def test_aux_that_is_not_there():
    fails(TypeError, r"must return a pair \(out, aux\)", lambda: model(has_aux=True))


def test_hessian_of_what_has_none():
    fails(TypeError, "argument 0 has dtype int", lambda: fomoh_jax.hessian(jnp.sin)(1))
    complex_ = lambda: fomoh_jax.hessian(jnp.sin)(1j)
    fails(TypeError, "argument 0 has dtype complex128", complex_)
    integers = lambda: fomoh_jax.hessian(jnp.argmax)(jnp.ones(3))
    fails(TypeError, "outputs are real", integers)
    beyond = lambda: fomoh_jax.hessian(jnp.sin, argnums=1)(1.0)
    fails(ValueError, "argnums names argument 1", beyond)


def test_wrappers_are_asked_what_they_take_themselves():
    def scaled(x, scale):
        return x * scale

    @functools.wraps(scaled)
    def wrapper(x):
        return scaled(x, 2.0)

    for fun in (wrapper, functools.partial(scaled, scale=2.0), jax.jit(wrapper)):
        assert fomoh_jax.hyper_jvp(fun, (1.0,), (1.0,), (1.0,))[1] == 2
