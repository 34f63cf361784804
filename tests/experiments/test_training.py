"""The models, and an epoch as one compiled scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import methods
from experiments.data import Dataset, Split
from experiments.models import MODELS
from experiments.training import Trainer, make_evaluation
from tests.reference import partly_slow

NAMES = methods.FORWARD + methods.BACKWARD


def blobs(n=64):
    """Images that are easy to tell apart."""
    labels = np.arange(n) % 10
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.3, (n, 28, 28, 1))
    images[np.arange(n), 2 * labels, :, 0] += 3
    return Split(images.astype(np.float32), labels.astype(np.int32))


def trainer(name="fomoh_kd", rate=0.01, k=2, n=64):
    data = Dataset(blobs(n), blobs(n))
    method = methods.make_method(name, rate, k)
    return Trainer(MODELS["softmax"], method, data, batch_size=16)


def run(trainer, epochs, seed=0):
    return list(trainer.train(epochs, trainer.begin(seed)))


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(NAMES))
def test_every_method_trains(name):
    rate = methods.LEARNING_RATES["softmax"].get(name)
    ends = run(trainer(name, rate / 2 if name == "fgd" else rate, k=4), 20)
    assert ends[0].losses.shape == (4,)
    assert ends[-1].losses.mean() < 0.8 * ends[0].losses.mean()


@pytest.mark.slow
def test_a_forward_epoch_is_one_scan_and_is_compiled_once():
    made = trainer(rate=0.2)
    run(made, 3)
    assert made.epoch._cache_size() == 1
    _, _, params, state, *_ = made.begin(0)
    jaxpr = jax.make_jaxpr(made.epoch)(params, state, jax.random.key(0), *blobs())
    (inner,) = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") == "scanned"]
    scans = [e for e in inner.params["jaxpr"].eqns if e.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [4]


@pytest.mark.slow
def test_a_seed_is_a_run():
    made = trainer(rate=0.2)
    ends = [run(made, 2, seed)[-1].losses for seed in (1, 1, 2)]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.any(ends[0] != ends[2])


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(name):
    made = trainer(name)
    whole = run(made, 4, seed=3)
    rest = list(made.train(4, whole[1]))
    assert [standing.epoch for standing in rest] == [3, 4]
    np.testing.assert_array_equal(rest[-1].losses, whole[-1].losses)
    jax.tree.map(np.testing.assert_array_equal, rest[-1].params, whole[-1].params)


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_minibatch_without_a_finite_loss_changes_nothing(name):
    made = trainer(name, n=16)
    whole, start = made.data, made.begin(0)
    images = np.full_like(whole.train.images, np.nan)
    made.data = whole._replace(train=whole.train._replace(images=images))
    (after,) = made.train(1, start)
    assert not np.isfinite(after.losses).any()
    jax.tree.map(np.testing.assert_array_equal, after.params, start.params)
    made.data = whole
    (then,) = made.train(2, after)
    assert np.isfinite(then.losses).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(then.params))


@pytest.mark.slow
def test_evaluation_is_the_mean_over_all_the_examples():
    model, data = MODELS["softmax"], blobs(60)
    params = model.init(jax.random.key(0), data.images[:1])
    whole = make_evaluation(model)(params, *data)
    parts = make_evaluation(model, batch_size=20)(params, *data)
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
