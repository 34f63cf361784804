"""A small language model that is tuned to another kind of text, for so many seconds.

It is trained on the source of Python's standard library and tuned to Python's headers
in C, both of which come with Python. All methods start from the same parameters.
"""

import functools
import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fomoh_jax
from experiments.methods import estimated, with_frozen
from experiments.models import LanguageModel
from experiments.training import Method

LENGTH, BATCH, SEEDS = 64, 32, 3
PRETRAINING = 2000
HELD_OUT = 256  # sequences
LAST_LAYER = "last layer and head"


class Texts(NamedTuple):
    """Bytes: to start from, to tune to, and sequences ``[n, length + 1]`` held out."""

    source: np.ndarray
    target: np.ndarray
    held_out: np.ndarray


def read_texts() -> Texts:
    """Of the Python that this runs on."""
    paths = sysconfig.get_paths()
    files = {
        "source": sorted(Path(paths["stdlib"]).glob("*.py")),
        "target": sorted(Path(paths["include"]).rglob("*.h")),
    }
    if not files["target"]:
        raise SystemExit(
            f"The headers of Python are not in {paths['include']}; install them, or "
            "leave the language model out with --no-language."
        )
    shuffle = np.random.default_rng(0).permutation  # so that all parts are alike
    source, target = (
        np.frombuffer(b"".join(some[i].read_bytes() for i in shuffle(len(some))), "u1")
        for some in files.values()
    )
    last = len(target) * 5 // 6
    starts = np.linspace(last, len(target) - LENGTH - 1, HELD_OUT).astype(int)
    held_out = target[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int32)
    return Texts(source, target[:last], held_out)


def loss_of_one(params: Any, text: jax.Array) -> jax.Array:
    """Mean cross-entropy of each byte after the first."""
    logits = LanguageModel().apply(params, text[:-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, text[1:])
    return jnp.mean(losses)


def mean_loss(params: Any, batch: jax.Array) -> jax.Array:
    """Of sequences ``[n, length + 1]``."""
    return jnp.mean(jax.vmap(loss_of_one, (None, 0))(params, batch))


def mezo(learning_rate: float, scale: float = 1e-3) -> optax.GradientTransformation:
    """Stochastic gradient descent by two losses a step, and no derivative.

    Malladi et al., *Fine-Tuning Language Models with Just Forward Passes*, 2023,
    arXiv:2305.17333.
    """

    def update(updates, key, params=None, *, value_fn, batch):
        key, own = jax.random.split(key)
        z = optax.tree.random_like(own, params)
        at = lambda step: mean_loss(optax.tree.add_scale(params, step, z), batch)
        slope = (at(scale) - at(-scale)) / (2 * scale)
        return jax.tree.map(lambda z: -learning_rate * slope * z, z), key

    init = lambda params: jax.random.key(0)
    return optax.GradientTransformationExtraArgs(init, update)


def make_methods(params: Any) -> dict[str, Method]:
    """The methods that are compared, by the name that the table has for them."""
    text = jax.ShapeDtypeStruct((LENGTH + 1,), jnp.int32)
    by_blocks = estimated(loss_of_one, params, text, 2)
    tail = ("Block_2", "LayerNorm_0", "Dense_0")
    by_layers = jax.tree_util.tree_map_with_path(
        lambda path, _: path[1].key not in tail, params
    )
    frozen = functools.partial(with_frozen, fomoh_jax.fomoh_ap(1))
    return {
        "fomoh_ap()": Method(fomoh_jax.fomoh_ap(), per_example=True),
        "tail only": Method(frozen(by_blocks), per_example=True),
        LAST_LAYER: Method(frozen(by_layers), per_example=True),
        "backpropagation, Adam": Method(optax.adam(1e-3), backpropagates=True),
        "MeZO": Method(mezo(3e-4), per_example=True),
    }


def make_steps(method: Method, data: np.ndarray, count: int) -> Callable:
    """``steps(params, state, key) -> params, state``, compiled: so many steps."""
    tx, data = optax.with_extra_args_support(method.transformation), jnp.asarray(data)

    def step(carry, key):
        params, state = carry
        starts = jax.random.randint(key, (BATCH, 1), 0, len(data) - LENGTH)
        batch = data[starts + jnp.arange(LENGTH + 1)].astype(jnp.int32)
        updates = None
        if method.backpropagates:
            updates = jax.grad(mean_loss)(params, batch)
        given = {"value_fn": loss_of_one, "batch": batch} if method.per_example else {}
        updates, state = tx.update(updates, state, params, **given)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def steps(params, state, key):
        keys = jax.random.split(key, count)
        return jax.lax.scan(step, (params, state), keys)[0]

    return steps


def pretrained(texts: Texts, steps: int = PRETRAINING) -> Any:
    """Parameters that know Python's source."""
    text = jnp.zeros(LENGTH, jnp.int32)
    params = jax.jit(LanguageModel().init)(jax.random.key(0), text)
    method = Method(optax.adam(1e-3), backpropagates=True)
    train = make_steps(method, texts.source, steps)
    state = method.transformation.init(params)
    return train(params, state, jax.random.key(1))[0]


def tune(
    method: Method, params: Any, texts: Texts, seeds: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """A record for each seed; compiling and evaluating do not count."""
    count = 10
    steps = make_steps(method, texts.target, count)
    evaluate = jax.jit(mean_loss)
    held_out = jnp.asarray(texts.held_out)
    key, init = jax.random.key(2), method.transformation.init
    for seed in seeds:
        if seed == seeds[0]:  # compiling does not count
            jax.block_until_ready(steps(params, init(params), key))
        at, state, done, spent = params, init(params), 0, 0.0
        curve = [(0.0, float(evaluate(at, held_out)))]
        while spent < seconds:
            start = time.perf_counter()
            own = jax.random.fold_in(jax.random.fold_in(key, seed), done)
            at, state = jax.block_until_ready(steps(at, state, own))
            spent, done = spent + time.perf_counter() - start, done + count
            if spent >= min(seconds, curve[-1][0] + seconds / 20):
                curve.append((round(spent, 2), float(evaluate(at, held_out))))
        yield {"seed": seed, "seconds": seconds, "steps": done, "curve": curve}


def run_all(file: Path, seeds: int, seconds: float, steps: int = PRETRAINING) -> None:
    """Run and keep, a line each, what is not in the file yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines() if file.exists() else []
    kept = {(x["method"], x["seconds"], x["seed"]) for x in map(json.loads, lines)}
    missing = {
        name: [seed for seed in range(seeds) if (name, seconds, seed) not in kept]
        for name in make_methods(_abstract())
    }
    if not any(missing.values()):
        return
    texts = read_texts()
    params = pretrained(texts, steps)
    for name, method in make_methods(params).items():
        for record in tune(method, params, texts, missing[name], seconds):
            with file.open("a") as out:
                out.write(json.dumps({"method": name, **record}) + "\n")
            print(f"{name}, seed {record['seed']}: {record['curve'][-1]}", flush=True)


def _abstract() -> Any:
    """The shapes of the parameters."""
    text = jnp.zeros(LENGTH, jnp.int32)
    return jax.eval_shape(LanguageModel().init, jax.random.key(0), text)
