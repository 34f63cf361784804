"""A step over eight devices: the numbers of one device, and what they exchange."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import fomoh_jax
from experiments.collectives import collectives
from fomoh_jax import directions, solvers
from fomoh_jax._hyperdual.channels import as_channel, is_channel
from tests.reference import assert_close, normal, slow

pytestmark = pytest.mark.optimised

K = 4
ALONG_BATCH = P("data")
WIDTHS = (16, 32, 8)
PARAMS = [
    0.3 * normal(*shape, seed=n) for n, shape in enumerate(itertools.pairwise(WIDTHS))
]
BATCH = {"x": normal(16, 16, seed=5), "y": normal(16, 8, seed=6)}


def loss(params, x, y):
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    return jnp.mean((x @ params[-1] - y) ** 2)


def stepper(tx):
    def step(params, state, batch):
        updates, state = tx.update(None, state, params, value_fn=loss, **batch)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


SOURCES = {
    "gaussian": directions.gaussian(K),
    "rademacher": directions.rademacher(K),
    "sparse": directions.sparse(K, 0.5),
    "orthonormal": directions.orthonormal(K),
    "deferred": directions.deferred(directions.gaussian(K)),
    "history": directions.gaussian(1) + directions.history(K - 1),
    "layerwise": directions.layerwise(directions.gaussian(1)),
    "of three kinds": directions.deferred(directions.gaussian(1))
    + (directions.gaussian(1) + directions.low_rank(2)),
}


def kd(name="gaussian", solver="self_tuning"):
    return optax.chain(
        fomoh_jax.scale_by_hyperplane(SOURCES[name], getattr(solvers, solver)()),
        optax.scale(-1.0),
    )


def compiled_step(tx, kind, param_spec, batch_spec=ALONG_BATCH):
    """The step, compiled for eight devices, and its arguments there."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, param_spec))
        batch = jax.device_put(BATCH, NamedSharding(mesh, batch_spec))
        args = params, tx.init(params), batch
        return stepper(tx).lower(*args).compile(), args


@functools.cache
def one_device(name="gaussian", solver="self_tuning"):
    """The parameters after the step of one device."""
    tx = kd(name, solver)
    return stepper(tx)(PARAMS, tx.init(PARAMS), BATCH)[0]


def exchanged(compiled):
    return [c for c in collectives(compiled.as_text()) if c.numbers > 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "kind"),
    [
        ("self_tuning", AxisType.Auto),
        slow("self_tuning", AxisType.Explicit),
        slow("trust_region", AxisType.Auto),
    ],
)
def test_a_sharded_batch_takes_one_exchange_of_value_slopes_and_curvatures(
    solver, kind
):
    compiled, args = compiled_step(kd(solver=solver), kind, P())
    found = exchanged(compiled)
    assert found
    assert sum(c.numbers for c in found) <= K**2 + K + 1
    new, _ = compiled(*args)
    assert_close(new, one_device(solver=solver))
    # Each device has made the same directions and the same step.
    for leaf in new:
        first, *others = leaf.addressable_shards
        for other in others:
            np.testing.assert_array_equal(first.data, other.data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, slow(AxisType.Explicit)])
def test_deferred_directions_of_sharded_parameters_are_never_sent(kind):
    compiled, args = compiled_step(kd("deferred"), kind, P("data"))
    forward = jax.jit(loss).lower(args[0], **args[2]).compile()
    shapes = lambda program: sorted(
        shape for c in exchanged(program) for shape in c.shapes if np.prod(shape) > K**2
    )
    assert shapes(compiled) == shapes(forward) == sorted(w.shape for w in PARAMS)
    new, _ = compiled(*args)
    assert_close(new, one_device())  # by the same directions
    for leaf in new:
        assert leaf.sharding.spec[0] == "data"


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {"deferred"}))
def test_directions_are_born_sharded_like_their_leaves(name):
    source = SOURCES[name]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))

    def shardings(params):
        state = source.advance(source.init(params), params)
        vectors = source.draw(jax.random.key(0), params, None, state)
        leaves = jax.tree.leaves(vectors, is_leaf=is_channel)
        arrays = [as_channel(leaf).stacked().array for leaf in leaves]
        return [jax.typeof(array).sharding.spec for array in arrays]

    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, P("data")))
        seen = []
        jax.eval_shape(lambda p: seen.extend(shardings(p)), params)
    assert seen and all(spec == P(None, "data", None) for spec in seen)


def test_branches_of_which_one_is_constant_keep_the_sharding_of_local_channels():
    def fun(x):
        square = lambda y: y * jnp.sin(y)
        return jnp.sum(jax.lax.cond(jnp.sum(x) > 0, square, jnp.ones_like, x**2))

    x = jnp.abs(normal(8))
    expected = jnp.trace(jax.hessian(fun)(x))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
        found = jax.jit(fomoh_jax.laplacian(fun))(sharded)
    assert_close(jax.device_get(found), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["history", "of three kinds"])
def test_directions_of_sharded_parameters_give_the_step_of_one_device(name):
    compiled, args = compiled_step(kd(name), AxisType.Explicit, P("data"))
    assert_close(compiled(*args)[0], one_device(name))


@pytest.mark.slow
def test_features_may_be_sharded_in_the_place_of_the_batch():
    compiled, args = compiled_step(kd(), AxisType.Auto, P(None, "data"), P())
    new, _ = compiled(*args)
    assert_close(new, one_device())
    assert [leaf.sharding.spec for leaf in new] == [P(None, "data")] * 2


@pytest.mark.parametrize("where", ["another mesh", "one device"])
def test_arrays_on_different_devices_are_named(where):
    first, second = np.split(np.array(jax.devices()), 2)
    mesh, other = (Mesh(devices, ("batch",)) for devices in (first, second))
    w = jax.device_put(jnp.ones(3), NamedSharding(mesh, P()))
    places = {
        "another mesh": NamedSharding(other, P("batch")),
        "one device": jax.devices()[0],
    }
    x = jax.device_put(jnp.ones((8, 3)), places[where])
    quadratic = lambda w, x: jnp.mean((x @ w) ** 2)
    message = r"same devices; got {} on Named.* and {} on .*jax.device_put"
    with pytest.raises(
        ValueError, match=message.format(r"primals\[0\]", r"primals\[1\]")
    ):
        fomoh_jax.quadratic_model(quadratic, (w, x), (jnp.ones((2, 3)), None))
    tx = fomoh_jax.fomoh_kd(2)
    with pytest.raises(ValueError, match=message.format(r"params\['w'\]", "x")):
        value_fn = lambda params, x: quadratic(params["w"], x)
        tx.update(None, tx.init({"w": w}), {"w": w}, value_fn=value_fn, x=x)


@pytest.mark.parametrize("solver", ["newton", "trust_region"])
def test_steps_in_between_models_are_the_same_on_all_devices_of_a_shard_map(solver):
    """Of a loss that is the same on all of them, though the examples are not."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    solver = getattr(solvers, solver)()
    tx = fomoh_jax.scale_by_hyperplane(directions.coordinates(), solver, every=2)

    def loss(x, batch, mean=lambda x: x):
        return mean(jnp.mean((batch @ x - 1) ** 2)) + jnp.sum(x**4)

    def steps(x, batch, loss):
        state = tx.init(x)
        for _ in range(3):
            updates, state = tx.update(None, state, x, value_fn=loss, batch=batch)
            x = x - updates
        return x

    x, batch = jnp.ones(3), normal(8, 3)
    mean = functools.partial(jax.lax.pmean, axis_name="data")
    mapped = jax.shard_map(
        functools.partial(steps, loss=functools.partial(loss, mean=mean)),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    alone = jax.jit(functools.partial(steps, loss=loss))(x, batch)
    assert_close(jax.jit(mapped)(x, batch), alone, rtol=1e-10)
