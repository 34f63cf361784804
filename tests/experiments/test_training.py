"""The models, and an epoch as one compiled scan."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import methods
from experiments.data import Split
from experiments.models import MODELS
from experiments.training import (
    Standing,
    begin,
    make_epoch,
    make_evaluation,
    train,
)


def blobs(n=64):
    """Images that are easy to tell apart."""
    labels = np.arange(n) % 10
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.3, (n, 28, 28, 1))
    images[np.arange(n), 2 * labels, :, 0] += 3
    return Split(images.astype(np.float32), labels.astype(np.int32))


def test_the_models_have_the_sizes_of_the_paper():
    for name, size in (("softmax", 7_850), ("cnn", 431_080)):
        params = MODELS[name].init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        assert sum(x.size for x in jax.tree.leaves(params)) == size


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_the_models_take_the_shape_of_the_data(name, shape):
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits, params = jax.eval_shape(
        lambda key, x: MODELS[name].init_with_output(key, x), jax.random.key(0), images
    )
    assert logits.shape == (2, 10)
    if (name, shape) == ("vgg", (32, 32, 3)):
        assert sum(x.size for x in jax.tree.leaves(params)) == 814_570


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_method_trains(name):
    k = 4
    rate = methods.default_learning_rate("softmax", name)
    method = methods.make_method(name, rate / 2 if name == "fgd" else rate, k)
    model, data = MODELS["softmax"], blobs()
    epoch = make_epoch(model, method, batch_size=16)
    runs = list(train(model, method, epoch, data, epochs=20, seed=0))
    assert runs[0].losses.shape == (4,)
    assert runs[-1].losses.mean() < 0.8 * runs[0].losses.mean()


def test_a_forward_epoch_is_one_scan_and_is_compiled_once():
    model, method = MODELS["softmax"], methods.make_method("fomoh_kd", 0.2, 2)
    epoch = make_epoch(model, method, batch_size=16)
    list(itertools.islice(train(model, method, epoch, blobs(), 3, seed=0), 3))
    assert epoch._cache_size() == 1
    params = model.init(jax.random.key(0), blobs().images[:1])
    state = method.transformation.init(params)
    jaxpr = jax.make_jaxpr(epoch)(params, state, jax.random.key(0), *blobs())
    (inner,) = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") == "scanned"]
    scans = [e for e in inner.params["jaxpr"].eqns if e.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [4]


def test_a_seed_is_a_run():
    model, method = MODELS["softmax"], methods.make_method("fomoh_kd", 0.2, 2)
    epoch = make_epoch(model, method, batch_size=16)
    ends = [
        [p.losses for p in train(model, method, epoch, blobs(), 2, seed)][-1]
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.any(ends[0] != ends[2])


@pytest.mark.parametrize("name", methods.NAMES)
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(name):
    method = methods.make_method(name, 0.01, 2)
    model, data = MODELS["softmax"], blobs()
    epoch = make_epoch(model, method, batch_size=16)
    whole = list(train(model, method, epoch, data, 4, seed=3))
    start = Standing(2, whole[1].params, whole[1].state)
    rest = list(train(model, method, epoch, data, 4, 3, start))
    assert len(rest) == 2
    np.testing.assert_array_equal(rest[-1].losses, whole[-1].losses)
    jax.tree.map(np.testing.assert_array_equal, rest[-1].params, whole[-1].params)


@pytest.mark.parametrize("name", methods.NAMES)
def test_a_minibatch_without_a_finite_loss_changes_nothing(name):
    method = methods.make_method(name, 0.01, 2)
    model, data = MODELS["softmax"], blobs(16)
    spoilt = data._replace(images=np.full_like(data.images, np.nan))
    epoch = make_epoch(model, method, batch_size=16)
    start = begin(model, method, data, 0)
    (after,) = train(model, method, epoch, spoilt, 1, 0, start)
    assert not np.isfinite(after.losses).any()
    jax.tree.map(np.testing.assert_array_equal, after.params, start.params)
    (then,) = train(model, method, epoch, data, 1, 0, Standing(0, *after[:2]))
    assert np.isfinite(then.losses).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(then.params))


def test_evaluation_is_the_mean_over_all_the_examples():
    model, data = MODELS["softmax"], blobs(60)
    params = model.init(jax.random.key(0), data.images[:1])
    whole = make_evaluation(model)(params, *data)
    parts = make_evaluation(model, batch_size=20)(params, *data)
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    with pytest.raises(ValueError, match="60 examples do not divide"):
        make_evaluation(model, batch_size=50)(params, *data)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"method must be one of fgd, .*got 'sdg'"):
        methods.make_method("sdg", 0.1, 1)
