"""Rules that users give to primitives of their own."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.extend.core.primitives import sin_p
from jax.interpreters import ad, batching, mlir

import fomoh_jax
from fomoh_jax import hyperdual, plans
from tests.reference import assert_agrees_with_nested_jvp, assert_close, normal


def primitive(name, function):
    new = Primitive(name)
    new.def_impl(function)
    new.def_abstract_eval(lambda *xs: xs[0])
    mlir.register_lowering(new, mlir.lower_fun(function, multiple_results=False))
    return new


@pytest.mark.slow
def test_a_rule_for_a_primitive_of_which_jax_knows_no_derivative():
    cube = primitive("cube", lambda x: x**3)
    function = lambda x: jnp.sum(cube.bind(jnp.sin(x)) * x)
    with pytest.raises(NotImplementedError) as caught:
        fomoh_jax.hessian(function)(normal(3))
    assert "'cube' on (float64[3])" in "".join(caught.value.__notes__)
    assert "test_extension.py" in "".join(caught.value.__notes__)

    @fomoh_jax.register_rule(cube)
    def rule(form, op, args):
        (x,) = args
        first, second = 3 * x.primal**2, 6 * x.primal
        curved = second * form.product(x.tangents, x.tangents)
        seconds = first * x.seconds + curved
        tangents = first * x.tangents
        return [hyperdual.HyperDual(*op(x.primal), tangents, seconds)]

    expected = jax.hessian(lambda x: jnp.sum(jnp.sin(x) ** 3 * x))(normal(3))
    for wrap in (lambda f: f, jax.jit):
        assert_close(wrap(fomoh_jax.hessian(function))(normal(3)), expected)
    chunked = fomoh_jax.hessian(function, plan=plans.forward(2))(normal(3))
    assert_close(chunked, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "function"),
    [
        ("elementwise", lambda x, y: x * jnp.sin(y)),
        ("bilinear", lambda x, y: x * y),
        ("linear", lambda x, y: 2 * x - y),
        ("generic", lambda x, y: jnp.outer(x, y)[0] * x),
    ],
)
def test_the_rule_of_a_family_is_enough(family, function):
    new = primitive(f"my_{family}", function)
    ad.primitive_jvps[new] = lambda primals, tangents: jax.jvp(
        function, primals, tuple(map(ad.instantiate_zeros, tangents))
    )
    batching.primitive_batchers[new] = lambda args, axes: (
        jax.vmap(function, axes)(*args),
        0,
    )
    fomoh_jax.register_rule(new)(getattr(hyperdual, family))
    fun = lambda x, y: new.bind(jnp.sin(x), y**2)
    assert_agrees_with_nested_jvp(fun, normal(3), normal(3, seed=1))


@pytest.mark.slow
def test_a_rule_takes_the_place_of_one_of_jax_s_also_where_it_was_interpreted_before():
    inner = jax.jit(jnp.sin)
    hessian = lambda: fomoh_jax.hessian(lambda x: inner(x))(jnp.array(0.5))
    assert_close(hessian(), -jnp.sin(0.5))
    fomoh_jax.register_rule(sin_p)(hyperdual.constant)
    assert hessian() == 0


def test_what_is_no_primitive_is_refused():
    with pytest.raises(TypeError, match=r"primitive must be a jax\.extend.*got 'sin'"):
        fomoh_jax.register_rule("sin")


def test_what_a_rule_must_not_return_is_named():
    square = primitive("square", lambda x: x**2)
    for wrong in (lambda x: x.primal, lambda x: [], lambda x: [x.primal]):
        fomoh_jax.register_rule(square)(lambda form, op, args, f=wrong: f(args[0]))
        with pytest.raises(TypeError, match="square must return a list of one HyperD"):
            fomoh_jax.hessian(square.bind)(jnp.array(2.0))
