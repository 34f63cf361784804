"""The order of the axes of convolutions."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fomoh_jax
from fomoh_jax._activations.convolutions import CONVOLUTION, with_axes_in_order
from fomoh_jax._compat import open_jaxpr, programs_in
from tests.reference import assert_close, normal

NHWC = ("NHWC", "HWIO", "NHWC")
OPTIONS = {
    "plain": {},
    "strides": {"window_strides": (2, 1), "padding": "SAME"},
    "dilation": {"rhs_dilation": (1, 2), "padding": [(1, 0), (2, 2)]},
    "groups": {"feature_group_count": 2},
    "channels first": {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    "mixed": {"dimension_numbers": ("HNCW", "IOWH", "WHNC")},
}


def squares(inputs, kernel, **options):
    given = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": NHWC}
    out = lax.conv_general_dilated(inputs, kernel, **(given | options))
    return jnp.sum(jnp.cos(out) ** 2)


def convolutions(program):
    """Those of a program, and of what it calls."""
    for eqn in program.eqns:
        if eqn.primitive.name == CONVOLUTION:
            yield eqn.params
        for inside in programs_in(eqn.params):
            yield from convolutions(open_jaxpr(inside)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_axes_in_order_change_no_number(name):
    inputs, kernel = normal(6, 7, 4, 4), normal(3, 2, 4, 6)
    if name == "groups":
        kernel = kernel[:, :, :2]
    if name == "channels first":
        inputs, kernel = inputs.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
    if name == "mixed":
        inputs, kernel = inputs.transpose(1, 0, 3, 2), kernel.transpose(2, 3, 1, 0)
    gradient = jax.grad(lambda *xs: squares(*xs, **OPTIONS[name]), (0, 1))
    ordered = with_axes_in_order(gradient)
    assert_close(jax.jit(ordered)(inputs, kernel), gradient(inputs, kernel), rtol=1e-12)
    axes = {
        p["dimension_numbers"]
        for p in convolutions(jax.make_jaxpr(ordered)(inputs, kernel).jaxpr)
    }
    assert axes == {lax.conv_dimension_numbers((1,) * 4, (1,) * 4, NHWC)}


@pytest.mark.parametrize(
    "wrapped", [lambda f: f, jax.checkpoint], ids=["", "checkpoint"]
)
def test_gradients_of_kernels_have_axes_in_order(wrapped):
    @wrapped
    def layer(hidden, kernel):
        return jax.nn.relu(
            lax.conv_general_dilated(
                hidden, kernel, (1, 1), "VALID", dimension_numbers=NHWC
            )
        )

    def loss(layer, params, image):
        hidden = image[None]
        for kernel in params["kernels"]:
            hidden = layer(hidden, kernel)
        return jnp.sum((hidden.ravel() @ params["out"]) ** 2)

    params = {
        "kernels": [normal(3, 3, 1, 4), normal(3, 3, 4, 5)],
        "out": normal(4 * 4 * 5, 3),
    }
    args = params, normal(6, 8, 8, 1), jax.random.key(0)
    grad = fomoh_jax.forward_value_and_grad(functools.partial(loss, layer))
    found = list(convolutions(jax.make_jaxpr(grad)(*args).jaxpr))
    assert len(found) >= 4
    assert all(p["dimension_numbers"].rhs_spec == (3, 2, 0, 1) for p in found)
    plain = functools.partial(loss, getattr(layer, "__wrapped__", layer))
    expected = jax.jit(fomoh_jax.forward_value_and_grad(plain))(*args)
    assert_close(jax.jit(grad)(*args), expected, rtol=1e-12)
