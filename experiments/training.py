"""Training a classifier, one compiled epoch at a time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments import parallel
from experiments.data import Split
from experiments.models import accuracy, cross_entropy


class Method(NamedTuple):
    """An optimiser and how its step is fed.

    Attributes:
      transformation: may take ``value_fn``, with the batch by keyword.
      backpropagates: whether its updates start from the gradient.
    """

    transformation: optax.GradientTransformation
    backpropagates: bool


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
      params, state: of the model and of the optimiser.
      losses: of the minibatches of the last epoch, each before its step.
    """

    params: Any
    state: Any
    losses: jax.Array


class Standing(NamedTuple):
    """Where a run goes on from.

    Attributes:
      epoch: how many epochs are done.
      params, state: of the model and of the optimiser, after them.
    """

    epoch: int
    params: Any
    state: Any


def make_epoch(
    model: nn.Module, method: Method, batch_size: int, mesh: Mesh | None = None
) -> Callable:
    """An ``epoch(params, state, key, images, labels) -> Progress``.

    It shuffles, cuts off what does not fill a batch, and scans over the batches, so
    that an epoch is one dispatch; with backpropagation it is one a batch. A minibatch
    whose loss is not finite changes nothing: forward methods see to that themselves;
    with backpropagation the step is undone.

    On a mesh each device has its share of every minibatch. What goes in and comes out
    is local, and the same in each process.
    """
    if mesh is not None:
        parallel.check_batch_size(batch_size, mesh.size)
    tx = optax.with_extra_args_support(method.transformation)

    def loss_fn(params, images, labels):
        return cross_entropy(model.apply(params, images), labels)

    @jax.jit
    def step(carry, batch):
        params, state = carry
        if method.backpropagates:
            loss, updates = jax.value_and_grad(loss_fn)(params, **batch)
        else:
            loss, updates = None, None
        updates, state = tx.update(updates, state, params, value_fn=loss_fn, **batch)
        after = optax.apply_updates(params, updates), state
        if loss is None:  # the forward pass has left it in the state
            return after, optax.tree.get(state, "value")
        keep = lambda new, old: jnp.where(jnp.isfinite(loss), new, old)
        return jax.tree.map(keep, after, carry), loss

    @jax.jit
    def shuffled(key, images, labels):
        batches = len(labels) // batch_size
        order = jax.random.permutation(key, len(labels))[: batches * batch_size]
        data = {
            "images": images[order].reshape(batches, batch_size, *images.shape[1:]),
            "labels": labels[order].reshape(batches, batch_size),
        }
        return data if mesh is None else parallel.shared_out(data, mesh)

    @jax.jit
    def scanned(params, state, key, images, labels):
        data = shuffled(key, images, labels)
        (params, state), losses = jax.lax.scan(step, (params, state), data)
        return Progress(params, state, losses)

    def stepwise(params, state, key, images, labels):
        carry, losses = (params, state), []
        data = shuffled(key, images, labels)
        for i in range(len(data["labels"])):
            carry, loss = step(carry, jax.tree.map(lambda x: x[i], data))
            losses.append(loss)
        return Progress(*carry, jnp.array(losses))

    # On the CPU, XLA runs the backward pass of a convolution slowly inside of a loop.
    epoch = stepwise if method.backpropagates else scanned
    return epoch if mesh is None else parallel.over_mesh(epoch, mesh)


def make_evaluation(model: nn.Module, batch_size: int = 1000) -> Callable:
    """A jitted ``evaluate(params, images, labels) -> (loss, accuracy)``.

    Of a split whose size is a multiple of the batch size, or smaller than it.
    """

    @jax.jit
    def evaluate(params, images, labels):
        size = min(batch_size, len(labels))
        if len(labels) % size:
            raise ValueError(f"{len(labels)} examples do not divide into {size}.")

        def on_batch(batch):
            logits = model.apply(params, batch[0])
            return cross_entropy(logits, batch[1]), accuracy(logits, batch[1])

        split = lambda x: x.reshape(-1, size, *x.shape[1:])
        return jax.tree.map(
            jnp.mean, jax.lax.map(on_batch, (split(images), split(labels)))
        )

    return evaluate


def begin(model: nn.Module, method: Method, data: Split, seed: int) -> Standing:
    """A fresh start: parameters and optimiser state, all of it from the seed."""
    init_key, _, direction_key = _keys(seed)
    params = model.init(init_key, data.images[:1])
    state = method.transformation.init(params)
    if not method.backpropagates:
        state = optax.tree.set(state, key=direction_key)
    return Standing(0, params, state)


def train(
    model: nn.Module,
    method: Method,
    epoch: Callable,
    data: Split,
    epochs: int,
    seed: int,
    start: Standing | None = None,
) -> Iterator[Progress]:
    """Train from a fresh start, or from where a run of that seed stood.

    Yields after each epoch. Everything random follows from the seed: the initial
    parameters, the order of the data, and, through the state's key, the directions; so
    that a run that goes on from ``start`` is the run that was never stopped.
    """
    first, params, state = start or begin(model, method, data, seed)
    _, data_key, _ = _keys(seed)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    for number in range(first, epochs):
        key = jax.random.fold_in(data_key, number)
        progress = epoch(params, state, key, images, labels)
        params, state = progress.params, progress.state
        yield progress


def _keys(seed: int) -> jax.Array:
    """Of the parameters, of the order of the data, of the directions."""
    return jax.random.split(jax.random.key(seed), 3)
