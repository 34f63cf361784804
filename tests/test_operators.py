"""``hessian`` against JAX's own. (On every program: test_value_and_gradient.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fomoh_jax
from fomoh_jax import curvature, plans
from tests.programs import cnn, cnn_arguments, mlp, rosenbrock
from tests.reference import (
    assert_close,
    assert_symmetric,
    compilations,
    normal,
)


@pytest.mark.slow
def test_hessian_agrees_with_jax_hessian_on_the_cnn():
    params, images, labels = cnn_arguments()
    loss = lambda params: cnn(params, images, labels)
    hessian = jax.jit(fomoh_jax.hessian(loss))(params)
    assert_close(hessian, jax.jit(jax.hessian(loss))(params))


@pytest.mark.slow
def test_hessian_has_the_structure_of_jax_hessian():
    fun, primals = mlp(jnp.tanh)
    for argnums in (0, 1, (0, 1), (1,), -1):
        assert_close(
            jax.jit(fomoh_jax.hessian(fun, argnums))(*primals),
            jax.jit(jax.hessian(fun, argnums))(*primals),
        )


@pytest.mark.slow
@pytest.mark.optimised
def test_hessian_in_chunks_is_the_hessian():
    x = normal(5)
    expected = jax.jit(jax.hessian(rosenbrock))(x)
    for chunk_size in (1, 2, 5, 9):
        plan = plans.forward(chunk_size)
        hessian = jax.jit(fomoh_jax.hessian(rosenbrock, plan=plan))(x)
        assert_close(hessian, expected)
        assert_symmetric(hessian)


@pytest.mark.slow
def test_hessian_passes_keywords_on():
    def fun(x, *, power):
        return jnp.sum(x**power)

    expected = np.diag(6 * np.array([1.0, 2.0]))
    actual = fomoh_jax.hessian(fun)(jnp.array([1.0, 2.0]), power=3)
    assert_close(actual, jnp.asarray(expected))


@pytest.mark.parametrize(
    "operator",
    [fomoh_jax.hessian, fomoh_jax.hessian_diagonal, fomoh_jax.laplacian],
)
def test_the_weak_type_of_a_python_number_is_kept(operator):
    fun = lambda x: jnp.sin(x["a"]) * x["b"] / x["a"]
    x = {"a": 2.0, "b": 3.0}
    types = lambda f, x: jax.tree.leaves(jax.eval_shape(f, x))
    assert all(leaf.weak_type for leaf in types(jax.hessian(fun), x))
    assert all(leaf.weak_type for leaf in types(operator(fun), x))
    strong = jax.tree.map(lambda x: jnp.asarray(x, "float32"), x)
    for leaf in types(operator(fun), strong):
        assert not leaf.weak_type and leaf.dtype == "float32"


CHUNKS = plans.forward(chunk_size=2)
EAGER = {
    "chunks of the Hessian": lambda f, x: fomoh_jax.hessian(f, plan=CHUNKS)(x),
    "chunks of a product": lambda f, x: curvature.hvp(f, (x,), (x,), plan=CHUNKS),
    "conjugate gradients": lambda f, x: curvature.conjugate_gradients(f, (x,), (x,)),
    "eigenvalues": lambda f, x: curvature.top_eigenvalues(f, (x,), KEY, 1),
    "chunks of samples": lambda f, x: curvature.sampled_hessian(
        f, probes=4, chunk_size=2
    )(KEY, x),
}
KEY = jax.random.PRNGKey(0)


@pytest.mark.parametrize("name", EAGER)
def test_a_second_eager_call_compiles_nothing(name):
    fun, x = lambda x: jnp.sum(jnp.tanh(x) ** 2 * x[0]), normal(3)
    first = EAGER[name](fun, x)
    with compilations() as seen:
        second = EAGER[name](fun, x)
    assert not seen
    assert_close(second, first, rtol=0, atol=0)
    assert_close(jax.jit(lambda x: EAGER[name](fun, x))(x), first, rtol=1e-6)


def test_what_is_no_array_is_named_with_what_to_do():
    model = {"weight": jnp.ones(2), "activation": jax.nn.relu}
    for call in (
        lambda: fomoh_jax.laplacian(lambda m: jnp.sum(m["weight"]))(model),
        lambda: fomoh_jax.hyper_jvp(lambda m: 1.0, (model,), (model,), (model,)),
        lambda: fomoh_jax.fomoh_kd(2).init(model),
        lambda: fomoh_jax.fgd(0.1).init(model),
    ):
        with pytest.raises(TypeError, match=r"\['activation'\] .*equinox.partition"):
            call()
