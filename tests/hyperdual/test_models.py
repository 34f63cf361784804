"""The public transformations against ``jvp`` of ``jvp``."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fomoh_jax
from fomoh_jax import plans
from tests.programs import PROGRAMS, cnn, cnn_arguments, mlp, rosenbrock
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    assert_symmetric,
    jitted,
    nested_model,
    normal,
    random_directions,
    slow,
)


@pytest.mark.sampled(2)
@pytest.mark.optimised
@pytest.mark.parametrize(
    "name",
    [slow(n) if i % 2 or n == "attention" else n for i, n in enumerate(PROGRAMS)],
)
def test_agrees_with_nested_jvp(name):
    fun, primals = PROGRAMS[name]
    assert_agrees_with_nested_jvp(fun, *primals)


@pytest.mark.slow
@pytest.mark.optimised
def test_agrees_with_nested_jvp_on_the_cnn():
    params, images, labels = cnn_arguments()
    loss = lambda params: cnn(params, images, labels)
    assert_agrees_with_nested_jvp(loss, params)


@pytest.mark.optimised
def test_value_of_the_model_is_the_function():
    fun, primals = mlp(jnp.tanh)
    directions = random_directions(primals, 2)
    model = jitted(fomoh_jax.quadratic_model)(fun, primals, directions)
    np.testing.assert_array_equal(model.value, jax.jit(fun)(*primals))


def test_none_holds_an_argument_or_a_part_of_one_fixed():
    fun, (params, x) = mlp(jnp.tanh)
    v = random_directions(params, 3)
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    nested = jax.jit(lambda v: nested_model(lambda p: fun(p, x), (params,), (v,)))
    model = jitted(fomoh_jax.quadratic_model)
    assert_close(model(fun, (params, x), (v, None)), nested(v))

    part = model(fun, (params, x), ({**v, "w1": None}, None))
    dense = {**v, "w1": zeros(v["w1"])}
    assert_close(part, nested(dense))

    tangents = (None, x)
    nothing_first = jitted(fomoh_jax.hyper_jvp)(fun, (params, x), tangents, tangents)
    _, expected = jitted(jax.jvp)(lambda x: fun(params, x), (x,), (x,))
    assert_close(nothing_first[1], expected)


def test_integer_arguments_take_float0_or_none():
    def fun(x, n):
        return x**2 * n

    x, n = jnp.array(3.0), jnp.array(2)
    no_tangent = np.zeros((), jax.dtypes.float0)
    one = jnp.array(1.0)
    for held in (no_tangent, None):
        out, d1, _, d12 = fomoh_jax.hyper_jvp(fun, (x, n), (one, held), (one, held))
        assert (out, d1, d12) == (18, 12, 4)


def test_integer_outputs_have_float0_derivatives_as_in_jax_jvp():
    fun = lambda x: (x**2, jnp.argmax(x), {"none": None})
    x = normal(3)
    out, d1, _, d12 = fomoh_jax.hyper_jvp(fun, (x,), (x,), (x,))
    _, expected = jax.jvp(fun, (x,), (x,))
    assert out[1] == jnp.argmax(x) and out[2] == {"none": None}
    for derivative in (d1, d12):
        assert derivative[1].dtype == expected[1].dtype == jax.dtypes.float0
    model = fomoh_jax.quadratic_model(fun, (x,), (normal(4, 3),))
    assert model.slope[1].shape == (4,) and model.curvature[1].shape == (4, 4)


def test_a_constant_function_has_zero_derivatives():
    model = fomoh_jax.quadratic_model(
        lambda x: jnp.ones(2), (normal(3),), (normal(4, 3),)
    )
    np.testing.assert_array_equal(model.slope, np.zeros((4, 2)))
    np.testing.assert_array_equal(model.curvature, np.zeros((4, 4, 2)))


def test_no_directions_give_an_empty_model():
    model = fomoh_jax.quadratic_model(rosenbrock, (normal(3),), (jnp.zeros((0, 3)),))
    assert model.value == rosenbrock(normal(3))
    assert model.slope.shape == (0,) and model.curvature.shape == (0, 0)


def test_scalars_and_python_numbers_are_primals():
    out, d1, d2, d12 = fomoh_jax.hyper_jvp(lambda x: x**3, (2.0,), (1.0,), (1.0,))
    assert (out, d1, d2, d12) == (8, 12, 12, 12)


def test_aux_is_returned_undifferentiated():
    def fun(x):
        return jnp.sum(x**2), {"twice": 2 * x, "count": 3}

    x = normal(3)
    for chunk_size in (None, 1):
        model, aux = fomoh_jax.quadratic_model(
            fun, (x,), (jnp.eye(3),), has_aux=True, plan=plans.forward(chunk_size)
        )
        assert_close(model.curvature, 2 * jnp.eye(3))
        assert_close(aux["twice"], 2 * x)
        assert aux["count"] == 3


@functools.cache
def model_of_rosenbrock(k):
    return jitted(fomoh_jax.quadratic_model)(rosenbrock, (normal(4),), (normal(k, 4),))


@pytest.mark.optimised
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7])
def test_chunks_of_any_size_give_the_same_model(k, chunk_size):
    x, v = normal(4), normal(k, 4)
    model = jitted(fomoh_jax.quadratic_model)
    parts = model(rosenbrock, (x,), (v,), plan=plans.forward(chunk_size))
    assert_close(parts, model_of_rosenbrock(k))
    assert_symmetric(parts.curvature)


def test_vmap_over_primals_and_over_directions():
    fun, (params, x) = mlp(jnp.tanh)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    v = random_directions(many, 3)
    v = jax.tree.map(lambda d: jnp.moveaxis(d, 1, 0), v)  # [2, k, *leaf]
    ours = lambda p, v: fomoh_jax.quadratic_model(fun, (p, x), (v, None))
    theirs = lambda p, v: nested_model(lambda p: fun(p, x), (p,), (v,))
    for axes in ((0, 0), (0, None), (None, 0)):
        p = params if axes[0] is None else many
        w = jax.tree.map(lambda d: d[0], v) if axes[1] is None else v
        expected = jax.jit(jax.vmap(theirs, axes))(p, w)
        assert_close(jax.jit(jax.vmap(ours, axes))(p, w), expected)


def test_every_transformation_vmaps_over_primals():
    fun = lambda x: jnp.sin(x) * x[0]
    x, v = normal(3, 4), normal(2, 4, seed=1)
    for ours in (
        lambda x: fomoh_jax.hyper_jvp(fun, (x,), (v[0],), (v[1],)),
        lambda x: fomoh_jax.directional_curvature(fun, (x,), (v,)),
        fomoh_jax.hessian(fun),
        fomoh_jax.hessian(fun, plan=plans.forward(3)),
    ):
        one_by_one = [jax.jit(ours)(row) for row in x]
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *one_by_one)
        assert_close(jax.jit(jax.vmap(ours))(x), stacked)


def test_vmap_with_a_batched_predicate():
    def fun(x):
        return lax.cond(x[0] > 0, jnp.sin, lambda x: x**3, x)

    x, v = jnp.array([[0.5, 1.0], [-0.5, 1.0]]), normal(3, 2)
    ours = lambda x: fomoh_jax.quadratic_model(fun, (x,), (v,))
    theirs = lambda x: nested_model(fun, (x,), (v,))
    assert_close(jax.vmap(ours)(x), jax.jit(jax.vmap(theirs))(x))


def test_gradient_of_the_curvature_agrees_with_finite_differences():
    fun, (params, x) = mlp(jnp.tanh)
    v = random_directions(params, 2)

    def functional(params):
        model = fomoh_jax.quadratic_model(fun, (params, x), (v, None))
        return jnp.sum(jnp.sin(model.curvature)) + jnp.sum(model.slope**2)

    functional = jax.jit(functional)
    gradient = jax.jit(jax.grad(functional))(params)
    u = random_directions(params, 1, seed=7)
    u = jax.tree.map(lambda d: d[0], u)
    h = 1e-5
    shift = lambda s: jax.tree.map(lambda p, d: p + s * h * d, params, u)
    difference = (functional(shift(1)) - functional(shift(-1))) / (2 * h)
    inner = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, u))))
    np.testing.assert_allclose(inner, difference, rtol=1e-7)


def test_ours_inside_ours_and_inside_jax_and_jax_inside_ours():
    x = normal(3)
    inner = lambda x: jnp.sum(fomoh_jax.hessian(rosenbrock)(x) ** 2)
    reference = lambda x: jnp.sum(jax.hessian(rosenbrock)(x) ** 2)
    expected = jax.jit(jax.hessian(reference))(x)
    assert_close(jax.jit(fomoh_jax.hessian(inner))(x), expected)
    assert_close(jax.jit(jax.hessian(inner))(x), expected)
    assert_close(jax.jit(fomoh_jax.hessian(reference))(x), expected)
    gradient = lambda x: jnp.sum(jax.grad(rosenbrock)(x) ** 2)
    assert_agrees_with_nested_jvp(gradient, x, k=2)


def test_closes_over_traced_values():
    @jax.jit
    def curvature(scale, x):
        model = fomoh_jax.quadratic_model(
            lambda x: scale * jnp.sum(x**3), (x,), (jnp.eye(2),)
        )
        return model.curvature

    expected = 2.0 * np.diag([6.0, 12.0])
    np.testing.assert_allclose(curvature(2.0, jnp.array([1.0, 2.0])), expected)
    gradient = jax.grad(lambda s: curvature(s, jnp.array([1.0, 2.0])).sum())(2.0)
    np.testing.assert_allclose(gradient, 18.0)


@pytest.mark.sampled(2)
@pytest.mark.optimised
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept(dtype):
    fun, primals = mlp(jnp.tanh)
    primals = jax.tree.map(lambda p: p.astype(dtype), primals)
    model = jax.jit(lambda *a: fomoh_jax.quadratic_model(fun, *a))(
        primals, random_directions(primals, 2)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(dtype)}
    wide = jax.tree.map(lambda p: p.astype("float64"), primals)
    directions = jax.tree.map(
        lambda d: d.astype("float64"), random_directions(primals, 2)
    )
    expected = jax.jit(lambda *a: nested_model(fun, *a))(wide, directions)
    rough = 20 * float(jnp.finfo(dtype).eps)
    as_wide = jax.tree.map(lambda x: x.astype("float64"), model)
    assert_close(as_wide, expected, rtol=max(rough, 1e-10))


def _model_at_full_size(name, k=10):
    """A loss and a hyperplane at the sizes of the experiments, float32."""
    from experiments.models import MODELS, cross_entropy

    if name == "mlp":
        sizes = (784, 100, 10)
        params = [
            (normal(a, b).astype("float32") / a**0.5, jnp.zeros(b, "float32"))
            for a, b in itertools.pairwise(sizes)
        ]

        def apply(params, images):
            (w1, b1), (w2, b2) = params
            x = images.reshape(len(images), -1)
            return jnp.tanh(x @ w1 + b1) @ w2 + b2
    else:
        model = MODELS[name]
        params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1), "float32"))
        apply = model.apply
    batch = 2048 if name == "mlp" else 1024
    images = normal(batch, 28, 28, 1).astype("float32")
    labels = jnp.arange(batch) % 10
    loss = lambda params, images, labels: cross_entropy(apply(params, images), labels)
    return loss, (params, images, labels), (random_directions(params, k), None, None)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("name", "k"),
    [
        ("softmax", 10),
        slow("mlp", 10),
        slow("cnn", 2),
        slow("cnn", 5),
    ],
)
def test_jit_equals_eager_at_the_sizes_of_the_experiments(name, k):
    loss, primals, directions = _model_at_full_size(name, k)
    model = lambda p, v: fomoh_jax.quadratic_model(loss, p, v)
    eager = model(primals, directions)
    assert_close(jax.jit(model)(primals, directions), eager, rtol=2e-5, atol=0)
    assert_symmetric(eager.curvature)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_step_under_jit_equals_an_eager_one_at_full_size():
    loss, (params, images, labels), _ = _model_at_full_size("softmax")
    tx = fomoh_jax.fomoh_kd(10, learning_rate=0.2)
    value_fn = lambda params, images, labels: loss(params, images, labels)
    step = lambda state, params: tx.update(
        None, state, params, value_fn=value_fn, images=images, labels=labels
    )[0]
    state = tx.init(params)
    eager = step(state, params)
    assert_close(jax.jit(step)(state, params), eager, rtol=2e-5, atol=0)


@pytest.mark.sampled(2)
@pytest.mark.optimised
@pytest.mark.parametrize("k", [1, slow(2), 10])
@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_operations_and_memory_beside_nested_jvp(name, k):
    loss, primals, directions = _model_at_full_size(name)
    params, images, labels = primals
    v = jax.tree.map(lambda d: d[:k], directions[0])

    def ours(params, v):
        fun = lambda p: loss(p, images, labels)
        return fomoh_jax.quadratic_model(fun, (params,), (v,), plan=plans.forward())

    def nested(params, v):  # value and slopes are shared between the pairs
        f = lambda p: loss(p, images, labels)
        along = lambda v: lambda p: jax.jvp(f, (p,), (v,))
        row = lambda v1: jax.vmap(lambda v2: jax.jvp(along(v2), (params,), (v1,)))(v)
        return jax.vmap(row)(v)

    ours, nested = (jax.jit(f).lower(params, v).compile() for f in (ours, nested))
    assert ours.cost_analysis()["flops"] <= 1.01 * nested.cost_analysis()["flops"]
    bytes_of = lambda c: c.memory_analysis().temp_size_in_bytes
    # Next to nothing of a nested softmax regression is ever stored: jax 0.12 fuses it.
    bound = {"mlp": 1.03, "softmax": 2.5}[name]
    assert bytes_of(ours) <= bound * bytes_of(nested)
