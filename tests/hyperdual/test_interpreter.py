"""What the interpreter does beside applying rules."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

import fomoh_jax
from fomoh_jax._hyperdual import interpreter
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.pair_forms import Pairs
from tests.reference import assert_agrees_with_nested_jvp, normal

V = (jnp.ones((2, 3)),)


def test_a_primitive_without_derivative_is_named_with_its_source_line():
    opaque = Primitive("opaque")
    opaque.def_impl(lambda x: x)
    opaque.def_abstract_eval(lambda x: x)

    def fun(x):
        return opaque.bind(x) * 2  # the line to blame

    with pytest.raises(NotImplementedError) as caught:
        fomoh_jax.quadratic_model(fun, (jnp.ones(3),), V)
    text = str(caught.value) + "".join(caught.value.__notes__)
    assert "'opaque' on (float64[3])" in text
    assert "test_interpreter.py" in text and "fun" in text


@pytest.mark.slow
def test_a_primitive_of_the_user_with_a_jvp_goes_to_the_generic_rule():
    # Named like one of JAX's, which it must not be mistaken for.
    cube = Primitive("tanh")
    cube.def_impl(lambda x: x**3)
    cube.def_abstract_eval(lambda x: x)
    mlir.register_lowering(cube, mlir.lower_fun(lambda x: x**3, False))
    batching.defvectorized(cube)
    jax.interpreters.ad.defjvp(cube, lambda t, x: 3 * x**2 * t)
    assert_agrees_with_nested_jvp(lambda x: cube.bind(jnp.sin(x)), normal(3), jit=False)


def test_pure_callback_without_derivative_gives_the_error_of_jax():
    def fun(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(ValueError, match="callback"):
        fomoh_jax.quadratic_model(fun, (jnp.ones(3),), V)


def test_intermediates_are_freed_when_nothing_reads_them_any_more(monkeypatch):
    made, alive, original = [], [], interpreter.apply_rule

    def counted(form, op, args):
        outs = original(form, op, args)
        made.extend(map(weakref.ref, outs))
        alive.append(sum(number() is not None for number in made))
        return outs

    def fun(x):
        for _ in range(6):
            x = jnp.sin(x)
        return x

    monkeypatch.setattr(interpreter, "apply_rule", counted)
    number = HyperDual(jnp.ones(3), Stack(jnp.ones((2, 3))))
    interpreter.interpret(jax.make_jaxpr(fun)(jnp.ones(3)), Pairs(2), [number])
    assert len(alive) == 6 and max(alive) == 2  # an operand and a result


def test_callbacks_run_once_on_primals_and_in_order():
    seen = []

    def watched(x):
        before = lambda x: seen.append(("before", float(x)))
        after = lambda x: seen.append(("after", float(x)))
        io_callback(before, None, x, ordered=True)
        jax.debug.callback(after, x**2, ordered=True)
        return x**2

    def fun(x):
        def step(carry, _):
            return watched(carry), None

        return lax.cond(x > 0, watched, lambda x: x, lax.scan(step, x, length=2)[0])

    expected = [
        (name, value)
        for x in (2.0, 4.0, 16.0)
        for name, value in (("before", x), ("after", x**2))
    ]
    for wrap in (lambda f: f, jax.jit):
        seen.clear()
        out = wrap(lambda x: fomoh_jax.hyper_jvp(fun, (x,), (1.0,), (1.0,)))(2.0)
        jax.effects_barrier()
        assert seen == expected
        assert out[3] == 8 * 7 * 2.0**6


def test_what_an_io_callback_returns_has_no_derivative():
    def fun(x):
        return io_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(ValueError, match="IO callbacks do not support JVP"):
        fomoh_jax.hessian(fun)(jnp.ones(3))
    count = lambda x: io_callback(
        lambda x: np.int32(4), jax.ShapeDtypeStruct((), "int32"), x
    )
    assert fomoh_jax.hessian(lambda x: x**2 * count(x))(3.0) == 8.0


def test_an_error_names_the_innermost_line_of_the_user():
    def fun(a):
        return jnp.sum(jax.scipy.linalg.sqrtm(a).real)  # schur, in a jitted function

    with pytest.raises(NotImplementedError) as caught:
        fomoh_jax.hessian(lambda a: jax.jit(fun)(2 * a))(jnp.eye(2))
    (note,) = (n for n in caught.value.__notes__ if n.startswith("fomoh_jax"))
    line = fun.__code__.co_firstlineno + 1
    assert "'schur' on (complex128[2,2])" in note
    assert f"test_interpreter.py:{line}" in note
