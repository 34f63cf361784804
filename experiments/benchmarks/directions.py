"""A step of FoMoH-KD(8) on large networks, by the kind of its directions."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import fomoh_jax
from experiments.benchmarks.measurement import OURS, Contender, Row
from experiments.minimisation import exact_gradient, make_step
from fomoh_jax import directions, solvers

K, LAYERS = 8, 4
# Widths of about 10⁶ and 10⁷ parameters.
SIZES = ((512, 64), (512, 512), (1600, 16), (1600, 64))


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """A row for each width and batch size."""
    for width, batch in ((32, 8),) if quick else SIZES:
        parameters = LAYERS * (width**2 + width)
        make = functools.partial(contenders, width, scale * batch, quick)
        sizes = {"parameters": parameters, "batch": scale * batch}
        yield Row("four relu layers", sizes, make)


def contenders(width: int, batch: int, quick: bool) -> dict[str, Contender]:
    """Ours is along directions of low rank; they all take different steps."""
    key = jax.random.key(0)
    params = [
        {"kernel": jax.random.normal(own, (width, width)) / width**0.5}
        | {"bias": jnp.zeros(width)}
        for own in jax.random.split(key, LAYERS)
    ]
    x, y = jax.random.normal(key, (2, batch, width))

    def loss(params, x, y):
        for layer in params:
            h = x @ layer["kernel"] + layer["bias"]
            x = jax.nn.relu(h)
        return jnp.mean((h - y) ** 2)

    def along(source):
        link = fomoh_jax.scale_by_hyperplane(source, solvers.self_tuning())
        return optax.chain(link, optax.scale_by_learning_rate(1.0))

    k = 2 if quick else K
    gaussian = directions.gaussian(k)
    methods = {
        OURS: along(directions.low_rank(k)),
        "Gaussian": along(gaussian),
        "Gaussian, deferred": along(directions.deferred(gaussian)),
        "SGD": optax.chain(exact_gradient(), optax.sgd(0.1)),
    }
    data = (params, x, y)
    steps = {}
    for name, tx in methods.items():
        state = tx.init(params)
        if name != "SGD":  # as after a first step, before which a reduction is NaN
            state = optax.tree.set(state, value=jnp.zeros(()))
        steps[name] = Contender(make_step(loss, tx), (params, state, x, y), False)
    return {**steps, "forward pass": Contender(loss, data, False)}
