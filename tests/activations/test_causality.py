"""What a perturbation reaches of a loss that is a sum over positions."""

import functools
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import fomoh_jax
from fomoh_jax._activations import estimate, reach
from fomoh_jax._activations.estimate import read_program
from fomoh_jax._activations.perturbations import of_block, signs
from fomoh_jax._hyperdual.jaxprs import bind, read
from tests.activations.models import CASES, Case, mean_loss
from tests.activations.sequences import (
    BATCH,
    CAUSAL,
    LENGTH,
    MIXING,
    PARAMS,
    SEQUENCES,
    WIDTH,
    stacked,
)
from tests.activations.test_estimate import KEY, assert_unbiased, estimates
from tests.reference import assert_close, partly_slow, slow

ALL = SEQUENCES | {"transformer": CASES["transformer"]}
ATTENTION = CAUSAL["attention"]
LONG = {"flax transformer", "scanned transformer"}
MOSTLY_SLOW = [slow(name) if name in LONG else name for name in ALL]


def program_of(case, blocks=None):
    example = jax.tree.map(lambda x: x[0], case.batch)
    return read_program(case.loss, case.params, example, False, blocks)


def axes(partition):
    """The axes of positions of all blocks, those in loops last."""
    own = [block.positions for block in partition.blocks]
    return own + [axis for inner in partition.scans.values() for axis in axes(inner)]


def without_causality(make):
    """What ``make`` returns if no program is taken for causal."""
    never = lambda partition: (partition, None)
    with mock.patch.object(estimate, "find_positions", never):
        return make()


def assert_nothing_flows_back(case):
    """No loss has a derivative by a later position of a cut that counts as causal."""
    program = program_of(case)
    graph, jaxpr = program.partition.graph, program.partition.jaxpr
    example = jax.tree.map(lambda x: x[0], case.batch)
    args = [*jax.tree.leaves(case.params), *jax.tree.leaves(example)]

    @jax.jit
    @jax.jacfwd
    def derivatives(shifts):
        values = graph.given(args)
        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, bind(eqn, read(values, eqn.invars))))
            for v in eqn.outvars:
                if v in cuts:
                    values[v] += shifts[cuts.index(v)]
        return program.by_position(jaxpr, values)

    blocks = [b for b in program.partition.blocks if b.positions is not None]
    cuts = [block.cut for block in blocks]
    found = derivatives([jnp.zeros(cut.aval.shape) for cut in cuts]) if cuts else []
    for block, of_cut in zip(blocks, found):
        of_cut = np.moveaxis(np.asarray(of_cut), 1 + block.positions, 1)
        assert np.any(of_cut)
        for s in range(len(of_cut)):
            assert not np.any(of_cut[s, s + 1 :]), (block, s)


@pytest.mark.parametrize("name", partly_slow(CAUSAL))
def test_causal_layers_are_seen(name):
    case = Case(stacked(CAUSAL[name]), PARAMS, BATCH)
    assert axes(program_of(case).partition)[0] == 0
    assert_nothing_flows_back(case)


@pytest.mark.parametrize(("known", "seen"), [(LENGTH**2, True), (LENGTH, False)])
def test_a_mask_is_as_large_as_that_of_one_head(known, seen):
    """What is repeated over heads is not computed for each, nor what is too large."""

    def heads(w, x):
        scores = jnp.stack([x @ w @ x.T, x @ w.T @ x.T])
        triangle = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        hidden = ~jnp.broadcast_to(triangle, scores.shape)
        return jnp.sum(jax.nn.softmax(jnp.where(hidden, -1e9, scores)) @ x, 0)

    with mock.patch.object(reach, "_KNOWN", known):
        case = Case(stacked(heads), PARAMS, BATCH)
        assert (axes(program_of(case).partition)[0] == 0) is seen


def test_constants_of_any_type_are_read():
    """Without warnings, of which numpy has some where types are short."""

    def layer(w, x):
        y = x @ w
        for dtype in ("bfloat16", "float16", "float8_e4m3fn", "int4", "uint8", "bool"):
            few = jnp.where(jnp.arange(LENGTH) > 1, 1, 0).astype(dtype)
            known = jnp.where(jnp.arange(LENGTH) > 2, few, few)
            read = jnp.where(jnp.arange(LENGTH) > 2, y[:, 0].astype(dtype), known)
            y = y * known.astype(x.dtype)[:, None] + read.astype(x.dtype)[:, None]
        return y * jnp.exp(1j * jnp.arange(LENGTH)).real[:, None]

    case = Case(stacked(layer), PARAMS, BATCH)
    with warnings.catch_warnings(action="error"):
        assert axes(program_of(case).partition)[0] == 0
    assert_nothing_flows_back(case)


def test_masks_are_read_inside_a_shard_map():
    grad = fomoh_jax.forward_value_and_grad(stacked(ATTENTION))
    specs = P(), P("data"), P()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    mean = lambda *args: jax.lax.pmean(grad(*args), "data")
    mapped = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=P())
    args = PARAMS, BATCH, KEY
    assert_close(jax.jit(mapped)(*args), jax.jit(grad)(*args), rtol=1e-10)


@pytest.mark.parametrize("name", partly_slow(MIXING))
def test_layers_that_look_ahead_are_not_taken_for_causal(name):
    case = Case(stacked(MIXING[name]), PARAMS, BATCH)
    first, *others = axes(program_of(case).partition)
    assert first is None
    assert 0 in others  # what is behind the layer
    assert_nothing_flows_back(case)


@pytest.mark.parametrize("seed", [*range(6), *map(slow, range(6, 12))])
def test_no_chain_of_layers_is_causal_that_looks_ahead(seed):
    draw = np.random.default_rng(seed)
    # Mixed ones among causal ones, and the flip that takes back a flip.
    names = draw.choice([*CAUSAL, *CAUSAL, *MIXING], 4)
    chosen = [(CAUSAL | MIXING)[name] for name in names]
    params = PARAMS | {"layer": [PARAMS["layer"] / (1 + i) for i in range(4)]}

    def chain(weights, x):
        for layer, w in zip(chosen, weights):
            x = x + jnp.tanh(layer(w, x))
        return x

    assert_nothing_flows_back(Case(stacked(chain), params, BATCH))


@pytest.mark.parametrize(
    "summed",
    [
        jax.nn.logsumexp,
        jnp.max,
        jnp.linalg.norm,
        jnp.prod,
        lambda x: jnp.mean(x) ** 2,
        lambda x: jnp.sum(jnp.sort(x)),
        lambda x: jnp.sum(x[1:] * x[:-1]),
        lambda x: jnp.sum(x * jax.lax.stop_gradient(x)[::-1] + x[::-1]),
        lambda x: jnp.sum(x.at[0].set(x[-1])),
        lambda x: x[-1],
        lambda x: jnp.mean(x) / jnp.sum(x),
    ],
)
def test_losses_that_mix_positions_are_not_sums_over_them(summed):
    case = Case(stacked(ATTENTION, summed), PARAMS, BATCH)
    program = program_of(case)
    assert program.by_position is None
    assert set(axes(program.partition)) == {None}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "summed",
    [
        jnp.sum,
        lambda x: -jnp.mean(x[:-1]) / 3 + 1,
        lambda x: jnp.sum(x * jnp.arange(LENGTH)) / jnp.maximum(LENGTH, 1.0),
        lambda x: jnp.mean(x) + 2 * jnp.sum(x[:-2] ** 2),
        lambda x: jnp.mean(x) + jax.nn.logsumexp(x),  # counts as if it came last
        lambda x: jnp.mean(x) - jnp.max(x) + jnp.sum(x[::-1]),
    ],
)
def test_sums_over_positions_are_unbiased(summed):
    case = Case(stacked(ATTENTION, summed), PARAMS, BATCH)
    assert axes(program_of(case).partition) == [0, 0, 0, None]
    _, samples = estimates(case, 1000)
    assert_unbiased(samples, jax.jit(jax.grad(mean_loss(case)))(case.params))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flax transformer", [*[0] * 5, None]),
        ("transformer", [*[0] * 4, None]),
        ("scanned transformer", [0, None, 0, 0]),
        ("recurrent language", [0, None, -1, -1]),
    ],
)
def test_sequences_are_causal(name, expected):
    case = ALL[name]
    assert axes(program_of(case).partition) == expected
    example = jax.tree.map(lambda x: x[0], case.batch)
    rows = fomoh_jax.blocks_of(case.loss, case.params, example)
    assert [row.causal for row in rows] == [axis is not None for axis in expected]
    assert_nothing_flows_back(ALL[name])


@functools.cache
def samples_of(name, causal, **options):
    make = lambda: estimates(ALL[name], 1500, **options)[1]
    return make() if causal else without_causality(make)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_estimates_of_sequences_are_unbiased_and_less_noisy(name):
    gradient = jax.jit(jax.grad(mean_loss(ALL[name])))(ALL[name].params)
    total = []
    for causal in (True, False):
        samples = samples_of(name, causal)
        assert_unbiased(samples, gradient)
        variances = (np.var(np.asarray(x), 0).sum() for x in jax.tree.leaves(samples))
        total.append(sum(variances))
    assert total[0] < 0.85 * total[1]


@pytest.mark.parametrize("name", [slow(name) for name in ALL])
@pytest.mark.parametrize("blocks", [2, 4])
def test_fewer_blocks_of_sequences_are_unbiased(name, blocks):
    gradient = jax.jit(jax.grad(mean_loss(ALL[name])))(ALL[name].params)
    _, samples = estimates(ALL[name], 1500, blocks=blocks, probes=2)
    assert_unbiased(samples, gradient)


def test_parameters_in_a_loop_over_time_are_perturbed_at_their_time():
    """They are fewer than what a step computes."""

    def loss(params, xs):
        def step(h, x):
            h = jnp.tanh(h * params["h"] + x[:, None] * params["x"])
            return h, h

        _, hs = jax.lax.scan(step, jnp.zeros((4, 3)), xs)
        return jnp.mean(jnp.sum((hs @ params["out"] - 1) ** 2, (1, 2)))

    params = {"h": jnp.ones(3) / 2, "x": jnp.arange(3.0), "out": jnp.ones((3, 2))}
    case = Case(loss, params, BATCH[0][:, :, :4])
    program = program_of(case)
    (inner,) = program.partition.scans.values()
    assert [(b.perturbs, b.positions) for b in inner.blocks] == [("parameters", -1)]
    _, samples = estimates(case, 1500)
    assert_unbiased(samples, jax.jit(jax.grad(mean_loss(case)))(params))


def test_the_estimate_is_that_of_the_formula():
    """Σ over s >= t of the derivative of the loss at s, by forward mode alone."""
    case = Case(stacked(ATTENTION), PARAMS, BATCH)
    probes, cuts = 2, 3
    grad = fomoh_jax.forward_value_and_grad(case.loss, probes=probes)
    _, actual = jax.jit(grad)(case.params, case.batch, KEY)
    examples = len(BATCH[0])
    keys = estimate._keys(KEY, jnp.arange(examples), probes)

    def states(params, x, shifts):
        first = jnp.tanh(x @ params["in"]) + shifts[0]
        second = first + ATTENTION(params["layer"], first) + shifts[1]
        return first, second, jnp.tanh(second @ params["middle"]) + shifts[2]

    def losses(params, example, shifts):
        x, y = example
        last = states(params, x, shifts)[-1]
        return jnp.sum((last @ params["out"] - y) ** 2, -1) / LENGTH

    def of_probe(example, key):
        shape = (LENGTH, WIDTH)
        u = [signs(of_block(key, i), shape, float) for i in range(cuts)]
        d = [
            sum(
                jax.jvp(
                    lambda scale: losses(PARAMS, example, [scale * one for one in u])[
                        s
                    ],
                    (0.0,),
                    (1.0,),
                )[1]
                for s in range(t, LENGTH)
            )
            for t in range(LENGTH)
        ]
        x, still = example[0], [0.0] * cuts
        first, second, _ = states(PARAMS, x, still)
        blocks = {
            "in": lambda w: jnp.tanh(x @ w),
            "layer": lambda w: first + ATTENTION(w, first),
            "middle": lambda w: jnp.tanh(second @ w),
        }
        return {
            name: jax.vjp(block, PARAMS[name])[1](jnp.stack(d)[:, None] * own)[0]
            for (name, block), own in zip(blocks.items(), u)
        }

    parts = [
        of_probe((BATCH[0][b], BATCH[1][b]), keys[b, k])
        for b in range(examples)
        for k in range(probes)
    ]
    expected = jax.tree.map(lambda *parts: sum(parts) / len(parts), *parts)
    expected["out"] = jax.grad(mean_loss(case))(PARAMS)["out"]
    assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def scalar_that_is_cut(params, losses, last):
    """Behind the mean is a model of its own, and a skip around it."""
    del last
    mean = jnp.mean(losses)
    return mean + jnp.tanh(mean * params["first"]) @ params["second"] @ params["third"]


def scalar_with_perturbed_parameters(params, losses, last):
    """JAX has no reverse mode for the loop, so that all around it are perturbed."""
    step = lambda i, h: jnp.tanh(h @ params["middle"])
    last = jax.lax.fori_loop(0, jnp.argmax(last[0]) + 1, step, last)
    return jnp.mean(losses) * params["scale"] + jnp.sum(last[0]) * params["scale"]


@pytest.mark.parametrize("end", [scalar_that_is_cut, scalar_with_perturbed_parameters])
def test_what_is_perturbed_behind_a_sum_over_positions_counts(end):
    def loss(params, example):
        x, y = example
        x = jnp.tanh(x @ params["in"])
        x = jnp.tanh((x + ATTENTION(params["layer"], x)) @ params["middle"])
        return end(params, jnp.sum((x @ params["out"] - y) ** 2, -1), x)

    more = {"first": jnp.ones(3) / 2, "second": jnp.eye(3), "third": jnp.arange(3.0)}
    case = Case(loss, PARAMS | more | {"scale": jnp.array(0.7)}, BATCH)
    _, samples = estimates(case, 1000)
    assert_unbiased(samples, jax.jit(jax.jacfwd(mean_loss(case)))(case.params))


@pytest.mark.slow
@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_one_block_is_backpropagation_and_has_no_positions(name):
    case = ALL[name]
    assert program_of(case, blocks=1).by_position is None
    grad = fomoh_jax.forward_value_and_grad(case.loss, blocks=1)
    expected = jax.jit(jax.value_and_grad(mean_loss(case)))(case.params)
    assert_close(jax.jit(grad)(case.params, case.batch, KEY), expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", [slow("scanned transformer"), "recurrent language"])
def test_noise_is_the_spread_of_estimates_of_sequences(name):
    case, n = ALL[name], 500
    grad = fomoh_jax.forward_value_and_grad(case.loss, return_noise=True)

    def of_key(key):
        of_batch, of_signs = jax.random.split(key)
        tokens = jax.random.randint(of_batch, (32, LENGTH + 1), 0, 5)
        return grad(case.params, tokens, of_signs)

    keys = jax.random.split(jax.random.key(2), n)
    _, gradients, noise = jax.jit(jax.vmap(of_key))(keys)
    # By parameters that are read in one block alone.
    inside = gradients["layers" if "layers" in gradients else "cells"]
    spread = sum(np.var(np.asarray(x), 0).sum() for x in jax.tree.leaves(inside))
    loops = sum(np.asarray(x).mean(0).sum() for x in noise if x.ndim > 1)
    if name == "scanned transformer":
        np.testing.assert_allclose(loops, spread, rtol=0.1)
    else:  # the iterations have a weight in common: their parts are correlated
        np.testing.assert_allclose(loops, spread, rtol=0.5)
    plain = fomoh_jax.forward_value_and_grad(case.loss)
    with_noise = jax.jit(grad)(case.params, case.batch, KEY)[:2]
    assert_close(with_noise, jax.jit(plain)(case.params, case.batch, KEY))
