"""Every optimiser against what a training loop does with it."""

import functools
import inspect
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import fomoh_jax as fj
from fomoh_jax import directions, solvers
from tests.reference import assert_close, compilations, partly_slow, slow

PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.5, "float64")}
TARGET = jnp.array([2.0, 0.0, -1.0])


def loss(params, target):
    w, b = params["w"], params["b"]
    return jnp.sum(jnp.cosh(w - target)) + (b * w[0]) ** 2 + b**2


def along(source, solver):
    def make(*, key=None):
        chosen = {} if key is None else {"key": key}
        return optax.chain(
            fj.scale_by_hyperplane(source, solver, **chosen), optax.scale(-1.0)
        )

    return make


def forward_gradient_along_layers(*, key=None):
    chosen = {} if key is None else {"key": key}
    source = directions.layerwise(directions.rademacher(1), by="leaf")
    return optax.chain(
        fj.scale_by_forward_gradient(source, **chosen), optax.scale(-0.05)
    )


def per_example(make):
    """An optimiser of the mean loss of two examples, which are both the target."""

    def made(*, key=None):
        tx = make() if key is None else make(key=key)

        def update(updates, state, params, *, target, **others):
            batch = jnp.stack([target, target])
            return tx.update(updates, state, params, batch=batch, **others)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return made


def by_activities(*, key=None):
    chosen = {} if key is None else {"key": key}
    return optax.chain(
        fj.scale_by_activity_gradient(**chosen), optax.scale_by_learning_rate(0.1)
    )


# Each source of directions with a solver, and each solver with a source.
OPTIMISERS = {
    "fgd(rate)": functools.partial(fj.fgd, 0.05),
    "fomoh(rate)": functools.partial(fj.fomoh, 0.5),
    "fomoh_kd(k)": functools.partial(fj.fomoh_kd, 2),
    "fomoh_kd(k, rate)": functools.partial(fj.fomoh_kd, 2, learning_rate=0.5),
    "fomoh_bp(rate)": functools.partial(fj.fomoh_bp, 0.5),
    "fomoh_ap()": per_example(fj.fomoh_ap),
    "by activities": per_example(by_activities),
    "forward gradient along layers": forward_gradient_along_layers,
    "gaussian, newton": along(directions.gaussian(2), solvers.newton()),
    "rademacher, saddle_free": along(directions.rademacher(2), solvers.saddle_free()),
    "sparse, damped": along(directions.sparse(2, 0.3), solvers.damped()),
    "orthonormal, trust_region": along(
        directions.orthonormal(2), solvers.trust_region()
    ),
    "coordinates, trust_region scaled": along(
        directions.coordinates(), solvers.trust_region(scaled=True)
    ),
    "incoming, trust_region next": along(
        directions.incoming(), solvers.trust_region(measured_on="next")
    ),
    "history, self_tuning": along(
        directions.gaussian(1) + directions.history(1), solvers.self_tuning()
    ),
    "layerwise, newton": along(
        directions.layerwise(directions.gaussian(1), by="leaf"), solvers.newton()
    ),
    "masked, saddle_free": along(
        directions.masked(directions.gaussian(2), {"w": True, "b": False}),
        solvers.saddle_free(),
    ),
    "deferred, trust_region": along(
        directions.deferred(directions.gaussian(2)), solvers.trust_region()
    ),
    "sum of incoming and history, damped": along(
        directions.incoming() + directions.history(1), solvers.damped()
    ),
}
# Their directions do not depend on a key.
DETERMINED = (
    "fomoh_ap()",  # the loss is one block
    "by activities",
    "fomoh_bp(rate)",
    "coordinates, trust_region scaled",
    "incoming, trust_region next",
    "sum of incoming and history, damped",
)
every_optimiser = pytest.mark.parametrize("name", OPTIMISERS)
every_other_optimiser = pytest.mark.parametrize("name", partly_slow(OPTIMISERS))

KEYS = {
    "typed": lambda seed: jax.random.key(seed),
    "legacy": lambda seed: jax.random.PRNGKey(seed),
    "of another generator": lambda seed: jax.random.key(seed, impl="rbg"),
    "a seed": lambda seed: seed,
}


def takes_key(make):
    return "key" in inspect.signature(make).parameters


KEYED = [
    name
    for name, make in OPTIMISERS.items()
    if takes_key(make) and name not in DETERMINED
]


def made(name, key):
    """The optimiser, with this key if its directions depend on one."""
    make = OPTIMISERS[name]
    return make(key=key) if takes_key(make) else make()


def step_of(tx, value_fn=loss, **extra_args):
    def step(params, state):
        grads = jax.grad(value_fn)(params, TARGET)
        updates, state = tx.update(
            grads, state, params, value_fn=value_fn, target=TARGET, **extra_args
        )
        return optax.apply_updates(params, updates), state

    return step


def copied(tree):
    return jax.tree.map(jnp.array, tree)


def started(name, seed=3):
    """Parameters and a state of their own, with a legacy key, as all can save it."""
    return copied(PARAMS), made(name, jax.random.PRNGKey(seed)).init(copied(PARAMS))


@functools.cache
def compiled(name):
    """One step that takes the buffers of its arguments."""
    return jax.jit(step_of(made(name, jax.random.PRNGKey(3))), donate_argnums=(0, 1))


def types(tree):
    return jax.tree.map(
        lambda x: (jnp.shape(x), x.dtype, getattr(x, "weak_type", False)), tree
    )


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def numbers(tree):
    """The tree with what a key consists of for each typed key."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def assert_same(actual, expected):
    """Bit for bit."""
    actual, expected = numbers(actual), numbers(expected)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def test_compilations_are_seen():
    with compilations() as seen:
        double = jax.jit(lambda x: 2 * x)
        double(1.0)
        assert len(seen) == 1
        double(2.0)
    assert len(seen) == 1


@pytest.mark.slow
@every_other_optimiser
def test_a_step_is_compiled_once(name):
    step = compiled(name)
    params, state = started(name)
    first = types((params, state))
    params, state = step(params, state)
    another = started(name, seed=4)
    with compilations() as seen:
        for _ in range(2):
            params, state = step(params, state)
        step(*another)
    assert not seen
    assert types((params, state)) == first


@pytest.mark.slow
@pytest.mark.sampled(4)
@every_optimiser
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_scan_over_steps_keeps_the_types_of_its_carry(name, dtype):
    tx = made(name, 3)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    value_fn = lambda p, target: loss(p, target.astype(dtype))
    step = step_of(tx, value_fn)
    steps = lambda *carry: jax.lax.scan(lambda c, _: (step(*c), None), carry, length=3)
    carry = params, tx.init(params)
    after, _ = jax.eval_shape(steps, *carry)
    assert types(after) == types(carry)


@pytest.mark.slow
@every_other_optimiser
def test_a_compiled_step_is_the_eager_one(name):
    expected = step_of(made(name, 3))(*started(name))
    actual = compiled(name)(*started(name))
    assert_close(numbers(actual), numbers(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.sampled(3)
@every_optimiser
def test_no_buffer_is_there_twice_after_an_eager_step(name):
    params, state = started(name)
    step = step_of(made(name, 3))
    leaves = jax.tree.leaves((params, step(params, state)))
    assert len(set(map(id, leaves))) == len(leaves)


@every_optimiser
def test_a_state_is_finite_from_the_start(name):
    for leaf in jax.tree.leaves(numbers(made(name, 3).init(PARAMS))):
        assert np.all(np.isfinite(leaf))


@pytest.mark.slow
@every_optimiser
@pytest.mark.parametrize("kind", KEYS)
def test_donated_states_leave_alone_what_the_user_holds(name, kind):
    key, params = KEYS[kind](3), copied(PARAMS)
    tx = made(name, key)
    donated = jax.jit(lambda state: state, donate_argnums=0)
    for _ in range(2):
        donated(tx.init(params))
    held = [x for x in jax.tree.leaves((key, params)) if isinstance(x, jax.Array)]
    assert not any(x.is_deleted() for x in held)


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("kind", KEYS)
def test_a_state_keeps_the_kind_of_key_that_the_user_gave(name, kind):
    key = KEYS[kind](3)
    state = made(name, key).init(PARAMS)
    expected = key if isinstance(key, jax.Array) else jax.random.key(key)
    assert types(optax.tree.get(state, "key")) == types(expected)


def ensemble(name, keys):
    """Members that are alike but for their keys, and their states."""
    members = jax.tree.map(lambda p: jnp.stack([p] * len(keys)), PARAMS)
    return members, jax.vmap(lambda key, p: made(name, key).init(p))(keys, members)


@pytest.mark.slow
@pytest.mark.sampled(3)
@every_optimiser
def test_the_step_of_an_ensemble_keeps_its_types(name):
    carry = ensemble(name, jax.random.split(jax.random.PRNGKey(3), 2))
    after = jax.eval_shape(jax.vmap(step_of(made(name, 3))), *carry)
    assert types(after) == types(carry)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "incoming, trust_region next",
        "history, self_tuning",
        "deferred, trust_region",
    ],
)
def test_members_of_an_ensemble_have_directions_of_their_own(name):
    keys = jax.random.split(jax.random.PRNGKey(3), 2)
    step = step_of(made(name, 3))
    together = jax.jit(jax.vmap(step))(*ensemble(name, keys))
    alone = jax.jit(step)(PARAMS, made(name, keys[1]).init(PARAMS))
    second = jax.tree.map(lambda x: x[1], together)
    assert_close(numbers(second), numbers(alone), rtol=1e-6, atol=1e-9)
    assert np.allclose(*together[0]["w"]) == (name in DETERMINED)


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYED)
def test_keys_of_an_ensemble_may_be_typed(name):
    keys = jax.random.split(jax.random.key(3), 2)
    _, states = ensemble(name, keys)
    second = jax.tree.map(lambda x: x[1], states)
    assert_same(second, made(name, keys[1]).init(PARAMS))


@pytest.mark.slow
@every_optimiser
def test_members_that_share_a_key_share_their_directions(name):
    tx = made(name, 3)
    members = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = jax.vmap(tx.init)(members)
    alone = tx.init(jax.tree.map(lambda p: 2 * p, PARAMS))
    assert_same(jax.tree.map(lambda x: x[1], states), alone)


@pytest.mark.slow
@every_optimiser
def test_abstract_parameters_give_the_types_of_the_state(name):
    tx = made(name, 3)
    expected = types(tx.init(PARAMS))
    assert types(jax.eval_shape(tx.init, PARAMS)) == expected
    assert types(tx.init(jax.eval_shape(copied, PARAMS))) == expected


@pytest.mark.slow
@every_optimiser
def test_optax_finds_the_parameters_in_a_state(name):
    tx = made(name, 3)
    state = tx.init(PARAMS)
    assert_same(optax.tree_utils.tree_map_params(tx, lambda p: p, state), state)
    marked = optax.tree_utils.tree_map_params(
        tx, lambda p: "a parameter", state, transform_non_params=lambda x: "none"
    )
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    for last in optax.tree_utils.tree_get_all_with_path(marked, "last"):
        assert last[1] == {"w": "a parameter", "b": "a parameter"}
    for _, model in optax.tree_utils.tree_get_all_with_path(marked, "model"):
        assert set(model) == {"none"}


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(KEYED))
def test_the_same_key_is_the_same_run_and_another_is_another(name):
    step = compiled(name)
    runs = []
    for seed in (3, 3, 4):
        carry = started(name, seed)
        for _ in range(2):
            carry = step(*carry)
        runs.append(carry)
    assert_same(runs[0], runs[1])
    same = np.array_equal(runs[0][0]["w"], runs[2][0]["w"])
    assert same == (name in DETERMINED)


def test_optimisers_without_a_key_do_not_share_their_directions():
    aliases = [OPTIMISERS[name] for name in KEYED]
    tx = optax.chain(*(make() for make in aliases + aliases))
    found = optax.tree_utils.tree_get_all_with_path(tx.init(PARAMS), "key")
    keys = [tuple(np.ravel(numbers(key)).tolist()) for _, key in found]
    assert len(keys) >= 2 * len(aliases)
    assert len(set(keys)) == len(keys)


def test_an_optimiser_without_a_key_has_that_of_seed_0_whatever_was_made_before():
    waiting = [fj.fgd(0.1), fj.fomoh_kd(2)]  # never initialised, and not collected
    first, again = fj.fomoh_kd(2), fj.fomoh_kd(2, key=0)
    assert_same(first.init(PARAMS), again.init(PARAMS))
    later = fj.fomoh_kd(2)  # on the same parameters, but after it
    assert_same(later.init(PARAMS), again.init(PARAMS))
    assert_same(first.init(PARAMS), again.init(PARAMS))
    assert waiting


def test_links_around_one_that_sees_other_arrays_have_keys_of_their_own():
    make = lambda: fj.scale_by_forward_gradient(directions.gaussian(1))
    tx = optax.chain(make(), optax.flatten(optax.scale(1.0)), make(), make())
    between = optax.chain(make(), optax.flatten(make()), make())
    for chain in (tx, between):
        found = optax.tree_utils.tree_get_all_with_path(chain.init(PARAMS), "key")
        first, *_, last = (numbers(key).tolist() for _, key in found)
        assert first != last


@pytest.mark.slow
def test_directions_of_two_optimisers_in_a_chain_are_not_parallel():
    step, end = fj.fgd(0.1), fj.fgd(0.1)
    one, other = (
        tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss, target=TARGET)[0]
        for tx in (step, end)
    )
    cosine = optax.tree.vdot(one, other) / (
        optax.tree.norm(one) * optax.tree.norm(other)
    )
    assert abs(cosine) < 0.999


def test_an_optimiser_made_inside_a_jitted_function_leaks_nothing():
    with jax.checking_leaks():
        state = jax.jit(lambda p: fj.fomoh_kd(2).init(p))(PARAMS)
    assert types(state) == types(fj.fomoh_kd(2).init(PARAMS))


@every_optimiser
def test_a_keyword_that_nothing_takes_is_refused_by_its_name(name):
    tx = made(name, 3)
    with pytest.raises(TypeError, match="bacth"):
        tx.update(
            PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss, target=TARGET, bacth=1
        )


@functools.cache
def after_one_step(name):
    """What ``step`` returned, and a state to restore into."""
    return compiled(name)(*started(name)), started(name, 4)


def through_orbax(state, like, path):
    with ocp.StandardCheckpointer() as saver:
        saver.save(path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(path / "state", like)
    # Free of the device that it is committed to, for which steps are compiled anew.
    return jax.tree.map(jnp.asarray, jax.device_get(restored))


def through_pickle(state, like, path):
    return pickle.loads(pickle.dumps(state))


def through_flax(state, like, path):
    return serialization.from_bytes(like, serialization.to_bytes(state))


def through_equinox(state, like, path):
    eqx.tree_serialise_leaves(path / "state.eqx", state)
    return eqx.tree_deserialise_leaves(path / "state.eqx", like)


ROUND_TRIPS = {
    "orbax": through_orbax,
    "pickle": through_pickle,
    "flax": through_flax,
    "equinox": through_equinox,
}


@pytest.mark.slow
@every_other_optimiser
@pytest.mark.parametrize("library", ROUND_TRIPS)
def test_a_run_goes_on_bit_for_bit(name, library, tmp_path):
    (params, state), (_, like) = after_one_step(name)
    restored = ROUND_TRIPS[library](state, like, tmp_path)
    assert_same(restored, state)
    step = compiled(name)
    assert_same(step(copied(params), restored), step(copied(params), copied(state)))


def test_typed_keys_are_saved_by_what_knows_them(tmp_path):
    tx = fj.fomoh_kd(2, key=jax.random.key(3))
    state = tx.init(PARAMS)
    assert_same(through_pickle(state, None, tmp_path), state)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        assert_same(saver.restore(tmp_path / "state", tx.init(PARAMS)), state)


def multi_steps(tx, n, **options):
    steps = optax.MultiSteps(tx, n, accumulator_dtype=jnp.float64, **options)
    return steps.gradient_transformation()


# What takes each step of the optimiser inside.
TRANSPARENT = {
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "named_chain": lambda tx: optax.named_chain(("ours", tx)),
    "with_extra_args_support": optax.with_extra_args_support,
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step: step >= 0
    ),
    "conditionally_mask": lambda tx: optax.conditionally_mask(
        tx, lambda step, **extra_args: step >= 0, forward_extra_args=True
    ),
    "MultiSteps": lambda tx: multi_steps(tx, 1),
    "MultiSteps that skips": lambda tx: multi_steps(
        tx, 1, should_skip_update_fn=optax.skip_not_finite
    ),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": True}),
    "partition": lambda tx: optax.partition({"all": tx}, {"w": "all", "b": "all"}),
    "selective_transform": lambda tx: optax.selective_transform(
        tx, freeze_mask={"w": False, "b": False}
    ),
    # It takes the value, which is no argument of the loss.
    "reduce_on_plateau": lambda tx: optax.chain(
        tx, optax.contrib.reduce_on_plateau(patience=10)
    ),
}
# Others only have to pass the loss on, and keep the types.
OPAQUE = {
    "MultiSteps of two": lambda tx: multi_steps(tx, 2),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 1.0, b1=0.9),
    "mechanize": lambda tx: optax.contrib.mechanize(tx),
}


def paired(wrappers, each):
    """Every wrapper with some optimisers, and every optimiser with some wrappers."""
    names = list(OPTIMISERS)
    return [
        (wrapper, names[(i * each + j) % len(names)])
        for i, wrapper in enumerate(wrappers)
        for j in range(each)
    ]


def wrapped_step(wrapper, name):
    tx = {**TRANSPARENT, **OPAQUE}[wrapper](made(name, 3))
    extra_args = {"value": jnp.ones(())} if wrapper == "reduce_on_plateau" else {}
    return step_of(tx, **extra_args), (copied(PARAMS), tx.init(PARAMS))


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize(("wrapper", "name"), paired(TRANSPARENT | OPAQUE, 4))
def test_a_wrapper_passes_the_loss_on_and_keeps_the_types(wrapper, name):
    step, carry = wrapped_step(wrapper, name)
    assert types(jax.eval_shape(step, *carry)) == types(carry)


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("wrapper", partly_slow(TRANSPARENT))
@pytest.mark.parametrize(
    "name", ["fomoh_kd(k)", slow("sum of incoming and history, damped")]
)
def test_inside_a_wrapper_the_steps_are_the_same(wrapper, name):
    step, carry = wrapped_step(wrapper, name)
    tx = made(name, 3)
    bare, expected = step_of(tx), (PARAMS, tx.init(PARAMS))
    with jax.disable_jit():  # saves the compilation of each branch
        for _ in range(2):
            carry, expected = step(*carry), bare(*expected)
    assert_close(carry[0], expected[0], rtol=1e-6)


ALIASES = {
    "fgd": lambda **key: optax.inject_hyperparams(fj.fgd, static_args="k")(0.05, **key),
    "fomoh": lambda **key: optax.inject_hyperparams(fj.fomoh)(0.5, **key),
    "fomoh_kd": lambda **key: optax.inject_hyperparams(fj.fomoh_kd, static_args="k")(
        2, **key
    ),
    "fomoh_kd with a rate": lambda **key: optax.inject_hyperparams(
        fj.fomoh_kd, static_args="k"
    )(2, learning_rate=0.5, **key),
}


@pytest.mark.slow
@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("kind", ["default", "a seed", "typed", "legacy"])
def test_hyperparameters_are_injected_whatever_the_key(alias, kind):
    key = {} if kind == "default" else {"key": KEYS[kind](3)}
    tx = ALIASES[alias](**key)
    carry = PARAMS, tx.init(PARAMS)
    assert types(jax.eval_shape(step_of(tx), *carry)) == types(carry)
    if kind != "default":
        plain = {"fgd": fj.fgd(0.05, **key), "fomoh": fj.fomoh(0.5, **key)}
        kd = {"fomoh_kd": fj.fomoh_kd(2, **key)}
        rated = {"fomoh_kd with a rate": fj.fomoh_kd(2, learning_rate=0.5, **key)}
        bare = {**plain, **kd, **rated}[alias]
        assert_same(carry[1].inner_state, bare.init(PARAMS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.masked(tx, lambda p: {"w": True, "b": False}),
        lambda tx: optax.partition(
            {"ours": tx, "theirs": optax.adam(0.1)}, {"w": "ours", "b": "theirs"}
        ),
        lambda tx: optax.selective_transform(tx, freeze_mask={"w": False, "b": True}),
    ],
    ids=["masked", "masked by a function", "partition", "selective_transform"],
)
@every_optimiser
def test_a_part_of_the_parameters_is_a_matter_of_directions(name, wrap):
    with pytest.raises(TypeError, match=r"directions\.masked"):
        wrap(made(name, 3)).init(PARAMS)


@pytest.mark.slow
def test_flatten_hands_the_loss_a_vector():
    flat, unflatten = jax.flatten_util.ravel_pytree(PARAMS)
    tx, bare = optax.flatten(fj.fomoh_kd(2, key=3)), fj.fomoh_kd(2, key=3)
    state = tx.init(PARAMS)
    grads = jax.grad(loss)(PARAMS, TARGET)
    value_fn = lambda vector, target: loss(unflatten(vector), target)
    updates, after = tx.update(grads, state, PARAMS, value_fn=value_fn, target=TARGET)
    assert types(after) == types(state)
    expected, _ = bare.update(
        None, bare.init(flat), flat, value_fn=value_fn, target=TARGET
    )
    assert_close(jax.flatten_util.ravel_pytree(updates)[0], expected, rtol=1e-6)
