"""Cosines between estimates and the gradient, along a run of the deep MLP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fomoh_jax
from experiments import records
from experiments.data import load_small
from experiments.minimisation import take_step
from experiments.models import MODELS
from experiments.training import make_losses

BATCH, STEPS, EVERY = 1024, 600, 50
# Numbers of blocks and of probes.
SETTINGS = [(2, 1), (3, 1), (5, 1), (5, 4), (5, 16)]


def run_all(file: Path, steps: int) -> None:
    """Writes the cosines of a run with so many steps, unless they are in the file."""
    last = max((record["step"] for record in records.read(file)), default=-1)
    if last != steps // EVERY * EVERY:
        records.replace(file, _records(steps))


def _records(steps: int) -> Iterator[dict[str, Any]]:
    model, data = MODELS["deep"], load_small().train
    images, labels = map(jnp.asarray, data)
    mean, loss_of_one = make_losses(model)
    params = model.init(jax.random.key(0), images[:1])
    tx = fomoh_jax.fomoh_ap()
    state = tx.init(params)
    estimates = [
        fomoh_jax.forward_value_and_grad(loss_of_one, blocks=blocks, probes=probes)
        for blocks, probes in SETTINGS
    ]

    def sampled(key):
        chosen = jax.random.choice(key, len(labels), (BATCH,), replace=False)
        return images[chosen], labels[chosen]

    @jax.jit
    def step(params, state, key):
        return take_step(tx, params, state, value_fn=loss_of_one, batch=sampled(key))

    @jax.jit
    def cosines(params, key):
        """Cosines of the estimates with the gradient of the same batch."""
        batch = sampled(key)
        exact = jax.grad(mean)(params, *batch)
        return [_cosine(f(params, batch, key)[1], exact) for f in estimates]

    for number in range(steps + 1):
        key = jax.random.key(number)
        if number % EVERY == 0 or number == 5:
            for setting, value in zip(SETTINGS, cosines(params, key)):
                place = dict(zip(("step", "blocks", "probes"), (number, *setting)))
                yield place | {"cosine": round(float(value), 4)}
        params, state = step(params, state, key)


def _cosine(a: Any, b: Any) -> jax.Array:
    product = optax.tree.vdot(a, b)
    return product / (optax.tree.norm(a) * optax.tree.norm(b))
