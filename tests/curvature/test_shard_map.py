"""Inside a ``jax.shard_map``, of a function that closes over each device's own data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from fomoh_jax import plans
from fomoh_jax.curvature import (
    conjugate_gradients,
    hutchinson_diagonal,
    hvp,
    sampled_hessian,
    top_eigenvalues,
)
from tests.reference import assert_close, normal

KEY = jax.random.key(0)
DATA, X = jnp.abs(normal(2, 3)) + 0.5, normal(3, seed=1)
CALLS = {
    "conjugate_gradients": lambda fun: conjugate_gradients(fun, (X,), (X,)).solution[0],
    "hvp": lambda fun: hvp(fun, (X,), (X,), plan=plans.adjoint())[0],
    "top_eigenvalues": lambda fun: (
        top_eigenvalues(fun, (X,), KEY, 1, oversampling=1, tol=1e-6).values
    ),
    "hutchinson_diagonal": lambda fun: hutchinson_diagonal(fun, probes=2)(KEY, X).value,
    "sampled_hessian": lambda fun: sampled_hessian(fun, probes=4, chunk_size=2)(KEY, X),
}


def fun_of(data):
    return lambda x: jnp.sum(data * x**2) / 2


@pytest.mark.parametrize("name", CALLS)
def test_each_device_has_its_own_curvature(name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")

    def own(data):
        return jax.tree.map(lambda y: y[None], CALLS[name](fun_of(data[0])))

    mapped = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=rows, out_specs=rows))
    found = mapped(DATA)
    if name == "conjugate_gradients":
        np.testing.assert_allclose(found, X / DATA, rtol=1e-5)
    elif name == "hvp":
        np.testing.assert_allclose(found, DATA * X, rtol=1e-6)
    elif name == "hutchinson_diagonal":
        assert_close(found, DATA)
    elif name == "top_eigenvalues":
        np.testing.assert_allclose(found[:, 0], jnp.max(DATA, 1), rtol=1e-6)
    else:
        alone = jax.jit(jax.vmap(lambda data: CALLS[name](fun_of(data))))
        assert_close(found, alone(DATA))


def test_a_reverse_pass_that_adds_up_what_each_device_has_is_refused():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")

    def product(data):
        whole = lambda x: jnp.sin(jax.lax.psum(fun_of(data[0])(x), "data"))
        return hvp(whole, (X,), (X,), plan=plans.adjoint())[0][None]

    mapped = jax.shard_map(
        product, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    with pytest.raises(ValueError, match=r"under plans.adjoint\(\) a function"):
        jax.eval_shape(mapped, DATA)


def test_a_product_is_not_split_over_explicit_axes():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match=r"all of AxisType.Auto; got .*Explicit"),
    ):
        hvp(fun_of(X), (X,), (X,), plan=plans.split("data"))
