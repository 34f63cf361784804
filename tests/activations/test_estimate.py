"""Forward gradients by perturbed activations."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fomoh_jax
from tests.activations.models import (
    CASES,
    EXAMPLES,
    LOOP,
    Case,
    cross_entropy,
    layers,
    mean_loss,
)
from tests.reference import assert_close, normal, partly_slow, slow

KEY = jax.random.key(7)


@functools.cache
def by_reverse_mode(name):
    """The mean loss of a case and its gradient."""
    case = CASES[name]
    return jax.jit(jax.value_and_grad(mean_loss(case)))(case.params)


def estimates(case, n, **options):
    """``n`` estimates with other keys, and what comes before and after the gradient."""
    grad = fomoh_jax.forward_value_and_grad(case.loss, **options)
    keys = jax.random.split(jax.random.key(1), n)
    return jax.jit(jax.vmap(lambda key: grad(case.params, case.batch, key)))(keys)


def assert_unbiased(samples, truth):
    """Means within five standard errors; exact where there is no noise."""
    for path, sample in jax.tree_util.tree_leaves_with_path(samples):
        exact = np.asarray(dict(jax.tree_util.tree_leaves_with_path(truth))[path])
        sample = np.asarray(sample)
        error = sample.std(0) / len(sample) ** 0.5
        rounding = 1e-9 * np.abs(exact).max() + 1e-14
        off = np.abs(sample.mean(0) - exact)
        assert np.all(off < 5 * error + rounding), (
            path,
            np.max(off / (error + 1e-12)),
        )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", partly_slow(CASES))
def test_it_is_unbiased(name):
    value, gradient = by_reverse_mode(name)
    values, samples = estimates(CASES[name], 1500)
    assert_close(values, np.full_like(values, value))
    assert_unbiased(samples, gradient)
    spread = [np.std(x) for x in jax.tree.leaves(samples)]
    assert any(s > 0 for s in spread)


QUICK = ("dense", "recurrent", "calls", "a reverse rule of its own")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in QUICK else slow(n) for n in CASES])
def test_one_block_is_backpropagation(name):
    case = CASES[name]
    grad = fomoh_jax.forward_value_and_grad(case.loss, blocks=1)
    actual = jax.jit(grad)(case.params, case.batch, KEY)
    assert_close(actual, by_reverse_mode(name), rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.optimised
def test_one_block_takes_the_operations_of_backpropagation():
    case = CASES["dense"]
    grad = fomoh_jax.forward_value_and_grad(case.loss, blocks=1)
    plain = lambda p, b, key: jax.value_and_grad(
        lambda p: jnp.mean(jax.vmap(case.loss, (None, 0))(p, b))
    )(p)
    wide = [jnp.tile(x, (64,) + (1,) * (x.ndim - 1)) for x in case.batch]
    flops = lambda f: (
        jax.jit(f)
        .lower(case.params, tuple(wide), KEY)
        .compile()
        .cost_analysis()["flops"]
    )
    assert flops(grad) < 1.05 * flops(plain)


@pytest.mark.parametrize("loss", [lambda p, x: jnp.sum(p**2), lambda p, x: x - p @ p])
def test_a_loss_and_aux_that_are_the_same_for_all_examples(loss):
    both = lambda p, x: (loss(p, x), {"p": p[0], "x": x, "one": 1.0})
    grad = fomoh_jax.forward_value_and_grad(both, blocks=1, has_aux=True)
    p, xs = jnp.arange(3.0), jnp.arange(4.0)
    (value, aux), gradient = grad(p, xs, KEY)
    assert_close(value, jnp.mean(jax.vmap(loss, (None, 0))(p, xs)))
    assert_close(gradient, jax.grad(lambda p: loss(p, 0.0))(p))
    assert_close(aux, {"p": jnp.zeros(4), "x": xs, "one": jnp.ones(4)})


@pytest.mark.slow
def test_loops_that_reverse_mode_refuses_are_crossed():
    # jacfwd is exact there, and grad refuses.
    gradient = jax.jit(jax.jacfwd(mean_loss(LOOP)))(LOOP.params)
    _, samples = estimates(LOOP, 3000)
    assert_unbiased(samples, gradient)
    assert np.std(samples["w"], 0).min() > 0
    assert np.std(samples["out"], 0).max() < 1e-12  # behind the loop it is exact


@pytest.mark.slow
def test_one_block_is_refused_where_backpropagation_is():
    grad = fomoh_jax.forward_value_and_grad(LOOP.loss, blocks=1)
    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        grad(LOOP.params, LOOP.batch, KEY)


def blocks(name, **options):
    case = CASES[name]
    example = jax.tree.map(lambda x: x[0], case.batch)
    return fomoh_jax.blocks_of(case.loss, case.params, example, **options)


@pytest.mark.slow
def test_cuts_lie_behind_activations_and_pooling():
    first, second, last = blocks("dense")
    assert (first.cut, second.cut, last.cut) == ("float64[4]", "float64[6]", "")
    assert last.parameters == ("['out']",) and last.perturbs == "nothing"
    assert first.parameters == ("['hidden'][0][0]", "['hidden'][0][1]")
    # Fewer weights than activations behind the first pooling.
    first, second, last = blocks("convolution")
    assert (first.perturbs, first.noise) == ("parameters", 18)
    assert (second.perturbs, second.noise) == ("activations", 2 * 2 * 2)
    program = str(
        jax.make_jaxpr(fomoh_jax.forward_value_and_grad(CASES["dense"].loss))(
            CASES["dense"].params, CASES["dense"].batch, KEY
        )
    )
    assert program.count("random_bits") == 4  # of two cuts, in each of two passes


def test_a_residual_stream_is_cut_behind_its_additions_alone():
    cut = blocks("transformer")
    assert [block.cut for block in cut] == [*["float64[5,4]"] * 4, ""]
    assert cut[-1].parameters == ("['embedding']",)  # as the head, which is exact
    assert "['embedding']" in cut[0].parameters
    (inside,) = [block for block in blocks("scanned layers") if block.repeats == 3]
    assert [block.repeats for block in blocks("linear layers")] == [1, 1, 3]
    assert inside.cut == "float64[4]" and len(inside.parameters) == 3


def test_a_second_tower_is_cut_as_well():
    names = [block.parameters for block in blocks("encoder and decoder")]
    assert ("['encoder'][0]",) in names and ("['encoder'][4]",) in names


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_so_many_blocks_need_the_least_memory(count):
    every = blocks("transformer")
    fewer = blocks("transformer", blocks=count)
    assert len(fewer) <= count
    assert sum(b.noise for b in fewer) <= sum(b.noise for b in every)
    peak = max(b.memory for b in fewer)
    # No other choice of cuts from all of them needs less.
    sizes = [b.memory for b in every]
    for cuts in itertools.combinations(range(1, len(sizes)), count - 1):
        ends = [0, *cuts, len(sizes)]
        assert peak <= max(sum(sizes[a:b]) for a, b in itertools.pairwise(ends))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, slow(3), 4, slow(5)])
@pytest.mark.parametrize("name", ["scanned layers", "linear layers", "long short-term"])
def test_so_many_blocks_of_a_loop_are_unbiased(name, count):
    case = CASES[name]
    taken = blocks(name, blocks=count)
    assert sum(block.repeats for block in taken) <= count
    _, gradient = by_reverse_mode(name)
    assert_unbiased(estimates(case, 1000, blocks=count)[1], gradient)


@pytest.mark.parametrize("name", CASES)
def test_there_is_noise_for_every_block(name):
    case = CASES[name]
    grad = fomoh_jax.forward_value_and_grad(case.loss, return_noise=True)
    _, _, noise = jax.eval_shape(grad, case.params, case.batch, KEY)
    repeats = [block.repeats for block in blocks(name)]
    assert [math.prod(x.shape) for x in noise] == repeats


def test_noise_is_in_the_order_of_the_blocks():
    """Though the loop that comes last in the program is met first."""

    def loss(params, x):
        step = lambda h, w: (jnp.tanh(h @ w), None)
        first, _ = jax.lax.scan(step, x, params["first"])
        second, _ = jax.lax.scan(step, jnp.sin(x), params["second"])
        return jnp.sum(jnp.tanh(second @ params["a"]) + jnp.tanh(first @ params["b"]))

    names = ("first", "second", "a", "b")
    params = dict(zip(names, layers((3, 4, 4), (2, 4, 4), (4, 4), (4, 4))))
    grad = fomoh_jax.forward_value_and_grad(loss, return_noise=True)
    noise = jax.eval_shape(grad, params, jnp.ones((8, 4)), KEY)[2]
    rows = fomoh_jax.blocks_of(loss, params, jnp.ones(4))
    assert [math.prod(x.shape) for x in noise] == [row.repeats for row in rows]


@pytest.mark.slow
def test_a_derivative_that_is_not_finite_makes_a_zero_gradient():
    grad = fomoh_jax.forward_value_and_grad(
        lambda params, x: jnp.sqrt(jnp.sum((x @ params) ** 2))
    )
    value, gradient = grad(jnp.zeros((4, 2)), jnp.ones((3, 4)), KEY)
    assert value == 0 and not np.any(gradient)


def test_marks_are_the_only_cuts():
    def loss(params, example):
        x, label = example
        x = fomoh_jax.cut(jnp.tanh(x @ params[0]), "first")
        x = jnp.tanh(x @ params[1])
        x = fomoh_jax.cut(jnp.tanh(x @ params[2]))
        return cross_entropy(x @ params[3], label)

    params = layers(*[(4, 4)] * 3, (4, 3))
    batch = CASES["calls"].batch
    case = Case(loss, params, batch)
    example = jax.tree.map(lambda x: x[0], batch)
    marked = fomoh_jax.blocks_of(loss, params, example, blocks="marked")
    assert [b.cut for b in marked] == ["first", "float64[4]", ""]
    assert marked[1].parameters == ("[1]", "[2]")
    _, samples = estimates(case, 1500, blocks="marked")
    assert_unbiased(samples, jax.jit(jax.grad(mean_loss(case)))(params))


@pytest.mark.slow
def test_probes_are_averaged():
    case = CASES["dense"]
    variance = lambda probes: sum(
        np.sum(np.var(np.asarray(x), 0))
        for x in jax.tree.leaves(estimates(case, 1000, probes=probes)[1])
    )
    assert variance(4) == pytest.approx(variance(1) / 4, rel=0.1)


@pytest.mark.slow
def test_noise_is_the_spread_of_estimates():
    """With other examples each time, since it contains what they differ by."""
    case, n = CASES["scanned layers"], 600
    grad = fomoh_jax.forward_value_and_grad(case.loss, return_noise=True)

    def estimate(key):
        of_batch, of_signs = jax.random.split(key)
        x = jax.random.normal(of_batch, (32, 5))
        label = jax.random.randint(of_batch, (32,), 0, 3)
        return grad(case.params, (x, label), of_signs)

    keys = jax.random.split(jax.random.key(2), n)
    _, gradients, noise = jax.jit(jax.vmap(estimate))(keys)
    first, last, layers = map(np.asarray, noise)
    variance = jax.tree.map(lambda x: np.var(np.asarray(x), 0), gradients)
    np.testing.assert_allclose(first.mean(), variance["in"].sum(), rtol=0.1)
    np.testing.assert_allclose(last.mean(), variance["out"].sum(), rtol=0.1)
    by_layer = sum(x.reshape(3, -1).sum(1) for x in variance["layers"])
    np.testing.assert_allclose(layers.mean(0), by_layer, rtol=0.15)
    plain = fomoh_jax.forward_value_and_grad(case.loss)
    with_noise = jax.jit(grad)(case.params, case.batch, KEY)[:2]
    assert_close(with_noise, jax.jit(plain)(case.params, case.batch, KEY))


@pytest.mark.slow
def test_aux_of_all_examples_is_stacked():
    case = CASES["dense"]

    def with_aux(params, example):
        value = case.loss(params, example)
        return value, {"label": example[1], "loss": value, "same": params["out"][0]}

    grad = jax.jit(fomoh_jax.forward_value_and_grad(with_aux, has_aux=True))
    (value, aux), gradient = grad(case.params, case.batch, KEY)
    np.testing.assert_array_equal(aux["label"], case.batch[1])
    assert value == pytest.approx(float(aux["loss"].mean()))
    assert aux["same"].shape == (EXAMPLES, 3)
    example = jax.tree.map(lambda x: x[0], case.batch)
    taken = fomoh_jax.blocks_of(with_aux, case.params, example, has_aux=True)
    assert taken == blocks("dense")
    plain = jax.jit(fomoh_jax.forward_value_and_grad(case.loss))
    assert_close(gradient, plain(case.params, case.batch, KEY)[1])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_makes_a_zero_gradient():
    case = CASES["dense"]
    x, labels = case.batch
    grad = jax.jit(fomoh_jax.forward_value_and_grad(case.loss))
    value, gradient = grad(case.params, (x.at[1, 0].set(jnp.nan), labels), KEY)
    assert np.isnan(value)
    assert all(not np.any(g) for g in jax.tree.leaves(gradient))


def test_a_loss_that_knows_no_example_or_no_parameter():
    batch, params = jnp.ones((3, 2)), {"w": jnp.ones(2), "unused": jnp.ones(3)}
    of_params = fomoh_jax.forward_value_and_grad(lambda p, x: jnp.sum(p["w"] ** 2))
    value, gradient = of_params(params, batch, KEY)
    assert value == 2 and gradient["w"].tolist() == [2, 2]
    assert gradient["unused"].tolist() == [0, 0, 0]
    of_example = fomoh_jax.forward_value_and_grad(lambda p, x: jnp.sum(x))
    value, gradient = of_example(params, batch, KEY)
    assert value == 2 and not np.any(gradient["w"])
    constant = fomoh_jax.forward_value_and_grad(lambda p, x: 1.0)
    value, gradient = constant(params, batch, KEY)
    assert value == 1 and not np.any(gradient["w"])


@pytest.mark.slow
def test_the_same_under_jit_vmap_and_over_seeds():
    case = CASES["scanned layers"]
    grad = fomoh_jax.forward_value_and_grad(case.loss, probes=2)
    keys = jax.random.split(KEY, 2)
    params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), case.params)
    together = jax.jit(jax.vmap(grad, (0, None, 0)))(params, case.batch, keys)
    for i in range(2):
        one = jax.tree.map(lambda x: x[i], params)
        alone = grad(one, case.batch, keys[i])
        assert_close(jax.tree.map(lambda x: x[i], together), alone)


@pytest.mark.slow
def test_an_example_may_hold_a_key():
    params = layers((4, 4), (4, 3))

    def loss(params, example):
        x, label, key = example
        h = jnp.tanh(x @ params[0]) * jax.random.bernoulli(key, 0.5, (4,))
        return cross_entropy(h @ params[1], label)

    x, label = CASES["calls"].batch
    case = Case(loss, params, (x, label, jax.random.split(KEY, EXAMPLES)))
    _, samples = estimates(case, 1500)
    assert_unbiased(samples, jax.jit(jax.grad(mean_loss(case)))(params))


def test_a_mark_is_one_array():
    with pytest.raises(TypeError, match="one floating-point array"):
        fomoh_jax.cut((jnp.ones(2), jnp.ones(2)))
    assert fomoh_jax.cut(np.ones(2)).tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_have_the_dtype_of_the_parameters(dtype):
    case = CASES["dense"]
    params = jax.tree.map(lambda x: x.astype(dtype), case.params)
    batch = case.batch[0].astype(dtype), case.batch[1]
    grad = fomoh_jax.forward_value_and_grad(case.loss)
    _, gradient = jax.eval_shape(grad, params, batch, KEY)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": {}}, ValueError, "params holds no array"),
        ({"params": {"w": 1j}}, TypeError, r"params\['w'\] has dtype complex"),
        (
            {"batch": (jnp.ones((2, 5)), jnp.ones(3, int))},
            ValueError,
            r"\[2, 5\].*\[3\]",
        ),
        ({"batch": jnp.ones(())}, ValueError, "lead with the examples"),
        ({"batch": ()}, ValueError, "no leaf"),
        ({"key": 0}, TypeError, "one PRNG key"),
        (
            {"loss": lambda p, e: e[0]},
            TypeError,
            r"one real floating-point scalar.*\[5\]",
        ),
        ({"loss": lambda p, e: (0.0, 1)}, TypeError, "set has_aux=True"),
        (
            {"loss": lambda p, e: jax.lax.pmean(jnp.sum(e[0]), "batch")},
            ValueError,
            "one example alone, without collectives",
        ),
        ({"blocks": 4}, ValueError, "at most 3"),
        ({"blocks": 0}, ValueError, "blocks must be at least 1"),
        ({"blocks": "all"}, ValueError, "None for all"),
        ({"blocks": "marked"}, ValueError, "at least one mark"),
        ({"probes": 0}, ValueError, "probes must be at least 1"),
        (
            {"loss": lambda p, e: jax.new_ref(jnp.sum(e[0]))[...]},
            ValueError,
            "must not use mutable arrays",
        ),
    ],
)
def test_errors_say_what_came_and_what_to_do(change, error, message):
    case = CASES["dense"]
    given = {"loss": case.loss, "params": case.params, "batch": case.batch, "key": KEY}
    given |= change
    options = {name: given[name] for name in ("blocks", "probes") if name in given}
    with pytest.raises(error, match=message):
        fomoh_jax.forward_value_and_grad(given["loss"], **options)(
            given["params"], given["batch"], given["key"]
        )


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("form", [slow("written out"), "scan"])
def test_memory_is_flat_in_depth(form):
    width, batch = 64, (normal(256, 64), jnp.zeros(256))

    def loss(params, example):
        x, y = example
        if form == "scan":
            x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)
        else:
            for w in params:
                x = jnp.tanh(x @ w)
        return jnp.sum((x - y) ** 2)

    @functools.cache
    def temporaries(depth, make):
        weights = normal(depth, width, width) / width**0.5
        params = weights if form == "scan" else list(weights)
        program = jax.jit(make(Case(loss, params, batch))).lower(params, batch, KEY)
        return program.compile().memory_analysis().temp_size_in_bytes

    ours = lambda case: fomoh_jax.forward_value_and_grad(loss)
    reverse = lambda case: lambda params, batch, key: jax.grad(mean_loss(case))(params)
    block = 256 * width * 8
    # Written out, the keys and the gradient of each layer, and not what it computes.
    growth = temporaries(24, ours) - temporaries(4, ours)
    assert growth < (0 if form == "scan" else 20 * block / 2) + block / 100
    assert temporaries(24, reverse) - temporaries(4, reverse) > 19 * block
    assert temporaries(24, ours) < temporaries(24, reverse) / 1.5
