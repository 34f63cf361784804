"""Forward gradients on devices, in other people's models, and exported."""

import re

import equinox
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fomoh_jax
from experiments.benchmarks import workloads
from experiments.models import MODELS
from tests.activations.models import CASES
from tests.reference import assert_close, partly_slow, slow

KEY = jax.random.key(3)
NAMES = ["dense", "recurrent", "a reverse rule of its own"]


def data_mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), (kind,))


def eight_examples(case):
    return jax.tree.map(lambda x: jnp.concatenate([x, x])[:8], case.batch)


@pytest.mark.optimised
@pytest.mark.parametrize("name", [slow(n) if n == "recurrent" else n for n in NAMES])
def test_a_sharded_batch_takes_the_exchanges_of_a_gradient(name):
    case, mesh = CASES[name], data_mesh()
    batch = eight_examples(case)
    grad = jax.jit(fomoh_jax.forward_value_and_grad(case.loss))
    params = jax.device_put(case.params, NamedSharding(mesh, P()))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    assert_close(grad(params, sharded, KEY), grad(case.params, batch, KEY), rtol=1e-10)
    text = grad.lower(params, sharded, KEY).compile().as_text()
    exchanged = set(re.findall(r"(all-gather|all-to-all|collective-permute)\(", text))
    assert "all-reduce" in text and not exchanged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scanned layers", "recurrent"])
def test_a_batch_may_say_how_it_is_sharded(name):
    case, mesh = CASES[name], data_mesh(AxisType.Explicit)
    batch = eight_examples(case)
    grad = jax.jit(fomoh_jax.forward_value_and_grad(case.loss))
    expected = grad(case.params, batch, KEY)
    params = jax.device_put(case.params, NamedSharding(mesh, P()))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        if jax.__version_info__ < (0, 11):  # JAX's own forward mode under vmap
            with pytest.raises(Exception, match="select `which` must be scalar"):
                grad(params, sharded, KEY)
        else:
            assert_close(grad(params, sharded, KEY), expected, rtol=1e-10)


@pytest.mark.parametrize("name", partly_slow(NAMES))
def test_inside_a_shard_map_each_device_has_the_gradient_of_its_own(name):
    case = CASES[name]
    batch, keys = eight_examples(case), jax.random.split(KEY, 4)
    grad = fomoh_jax.forward_value_and_grad(case.loss, probes=2)

    def mean(params, batch, keys):
        return jax.lax.pmean(grad(params, batch, keys[0]), "data")

    specs = P(), P("data"), P("data")
    mapped = jax.shard_map(mean, mesh=data_mesh(), in_specs=specs, out_specs=P())
    pieces = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    alone = jax.jit(jax.vmap(grad, (None, 0, 0)))(case.params, pieces, keys)
    expected = jax.tree.map(lambda x: jnp.mean(x, 0), alone)
    assert_close(jax.jit(mapped)(case.params, batch, keys), expected, rtol=1e-10)


@pytest.mark.slow
def test_it_is_exported():
    case = CASES["scanned layers"]
    grad = jax.jit(fomoh_jax.forward_value_and_grad(case.loss))
    key = jax.random.key_data(KEY)
    exported = jax.export.export(grad, platforms=("cpu", "cuda", "tpu"))(
        case.params, case.batch, key
    )
    loaded = jax.export.deserialize(exported.serialize())
    actual = loaded.call(case.params, case.batch, key)
    assert_close(actual, grad(case.params, case.batch, key))


def falls(params, loss_of_one, batch):
    grad = fomoh_jax.forward_value_and_grad(loss_of_one)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(carry, key):
        params, state = carry
        value, gradient = grad(params, batch, key)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(KEY, 60))
    assert values[-1] < 0.6 * values[0]


def xor():
    x = jax.random.normal(KEY, (64, 2))
    return x, jnp.sign(x[:, 0] * x[:, 1])


def test_an_equinox_model_is_trained():
    model = equinox.nn.MLP(2, 1, 16, 2, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_inexact_array)

    def loss_of_one(params, example):
        x, y = example
        return jnp.sum((equinox.combine(params, static)(x) - y) ** 2)

    falls(params, loss_of_one, xor())


@pytest.mark.slow
def test_an_nnx_model_is_trained():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 16, rngs=rngs)
            self.second = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.tanh(self.first(x)))

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)

    def loss_of_one(params, example):
        x, y = example
        return jnp.sum((nnx.merge(graph, params)(x) - y) ** 2)

    falls(params, loss_of_one, xor())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "mlp", slow("cnn"), slow("vgg")])
def test_one_block_is_the_gradient_of_every_model_here(name):
    model = MODELS[name]
    shape = (4, 32, 32, 3) if name == "vgg" else (4, 28, 28, 1)
    images, labels = workloads.normal(1, *shape).astype("float64"), jnp.arange(4)
    params = jax.jit(model.init)(KEY, images)
    params = jax.tree.map(lambda x: x.astype("float64"), params)
    losses = optax.softmax_cross_entropy_with_integer_labels

    def loss_of_one(params, example):
        image, label = example
        return losses(model.apply(params, image[None])[0], label)

    mean = lambda params: jnp.mean(losses(model.apply(params, images), labels))
    grad = fomoh_jax.forward_value_and_grad(loss_of_one, blocks=1)
    actual = jax.jit(grad)(params, (images, labels), KEY)
    assert_close(actual, jax.jit(jax.value_and_grad(mean))(params), rtol=1e-9)
