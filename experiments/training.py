"""Training a classifier, one compiled epoch at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments import parallel
from experiments.data import Dataset
from experiments.minimisation import take_step
from experiments.models import accuracy, cross_entropy


class Method(NamedTuple):
    """An optimiser and how its step is fed.

    Attributes:
      transformation: may take ``value_fn``, with the batch by keyword.
      backpropagates: whether its updates start from the gradient.
      per_example: whether ``value_fn`` is the loss of one image, and ``batch`` all.
    """

    transformation: optax.GradientTransformation
    backpropagates: bool = False
    per_example: bool = False


class Standing(NamedTuple):
    """Where a run stands, with all that it needs to go on.

    Attributes:
      seed: which run it is.
      epoch: how many epochs are done.
      params, state: of the model and of the optimiser, after them.
      losses: of the minibatches of the last epoch, each before its step.
      seconds, nonfinite: that it has taken, and non-finite losses that it has met.
      records: the metrics that have been written.
    """

    seed: int
    epoch: int
    params: Any
    state: Any
    losses: Any = ()
    seconds: float = 0.0
    nonfinite: int = 0
    records: Sequence[dict[str, Any]] = ()


def make_minibatch_step(model: nn.Module, method: Method) -> Callable:
    """A jitted ``step((params, state), batch) -> (params, state), loss``.

    A minibatch whose loss is not finite changes nothing: methods along random
    directions see to that themselves; with a gradient the step is undone.
    """
    loss_fn, loss_of_one = make_losses(model)

    @jax.jit
    def step(carry, batch):
        loss = updates = None
        if method.backpropagates:
            loss, updates = jax.value_and_grad(loss_fn)(carry[0], **batch)
        given = {"value_fn": loss_fn, **batch}
        if method.per_example:
            images_and_labels = batch["images"], batch["labels"]
            given = {"value_fn": loss_of_one, "batch": images_and_labels}
        after = take_step(method.transformation, *carry, updates, **given)
        if loss is None:  # the forward pass has left it in the state
            (_, loss), *_ = optax.tree.get_all_with_path(after[1], "value")
        if not (method.backpropagates or method.per_example):
            return after, loss
        keep = lambda new, old: jnp.where(jnp.isfinite(loss), new, old)
        return jax.tree.map(keep, after, carry), loss

    return step


def make_epoch(
    model: nn.Module, method: Method, batch_size: int, mesh: Mesh | None = None
) -> Callable:
    """An ``epoch(params, state, key, images, labels) -> params, state, losses``.

    It shuffles, cuts off what does not fill a batch, and scans over the batches, so
    that an epoch is one dispatch; where convolutions are transposed it is one a batch.

    On a mesh each device has its share of every minibatch. Arguments and results are
    local, and the same in each process.
    """
    step = make_minibatch_step(model, method)

    @jax.jit
    def shuffled(key, images, labels):
        batches = len(labels) // batch_size
        order = jax.random.permutation(key, len(labels))[: batches * batch_size]
        cut = lambda x: x[order].reshape(batches, batch_size, *x.shape[1:])
        data = {"images": cut(images), "labels": cut(labels)}
        return data if mesh is None else parallel.shared_out(data, mesh)

    @jax.jit
    def scanned(params, state, key, images, labels):
        data = shuffled(key, images, labels)
        (params, state), losses = jax.lax.scan(step, (params, state), data)
        return params, state, losses

    def stepwise(params, state, key, images, labels):
        carry, losses = (params, state), []
        data = shuffled(key, images, labels)
        for i in range(len(data["labels"])):
            carry, loss = step(carry, jax.tree.map(lambda x: x[i], data))
            losses.append(loss)
        return *carry, jnp.array(losses)

    # On the CPU, XLA transposes a convolution slowly inside of a loop.
    transposes = method.backpropagates or method.per_example
    epoch = stepwise if transposes else scanned
    return epoch if mesh is None else parallel.over_mesh(epoch, mesh)


def make_losses(model: nn.Module) -> tuple[Callable, Callable]:
    """The mean loss of a batch, and the loss of one ``(image, label)``."""

    def loss_fn(params, images, labels):
        return cross_entropy(model.apply(params, images), labels)

    def loss_of_one(params, example):
        image, label = example
        return loss_fn(params, image[None], label[None])

    return loss_fn, loss_of_one


def make_evaluation(model: nn.Module, batch_size: int = 1000) -> Callable:
    """A jitted ``evaluate(params, images, labels) -> (loss, accuracy)``.

    The size of a split must be a multiple of the batch size, or smaller than it.
    """

    @jax.jit
    def evaluate(params, images, labels):
        size = min(batch_size, len(labels))

        def on_batch(batch):
            logits = model.apply(params, batch[0])
            return cross_entropy(logits, batch[1]), accuracy(logits, batch[1])

        split = lambda x: x.reshape(-1, size, *x.shape[1:])
        parts = jax.lax.map(on_batch, (split(images), split(labels)))
        return jax.tree.map(jnp.mean, parts)

    return evaluate


@dataclasses.dataclass
class Trainer:
    """A model and its optimiser on a data set, compiled once for all seeds.

    Everything random follows from the seed: the initial parameters, the order of the
    data, and, through the optimiser's state, the directions.

    Attributes:
      steps: in an epoch.
    """

    model: nn.Module
    method: Method
    data: Dataset
    batch_size: int
    mesh: Mesh | None = None

    def __post_init__(self):
        self.steps = (images := len(self.data.train.labels)) // self.batch_size
        if not self.steps:
            raise SystemExit(f"--batch-size must be at most {images}, all the images.")
        self.epoch = make_epoch(self.model, self.method, self.batch_size, self.mesh)
        self._evaluate = make_evaluation(self.model)

    def begin(self, seed: int) -> Standing:
        """A fresh start."""
        init_key, _, direction_key = _keys(seed)
        params = self.model.init(init_key, self.data.train.images[:1])
        state = self.method.transformation.init(params)
        if not self.method.backpropagates:
            # Parameters may be called key, too.
            is_key = lambda path, x: (
                hasattr(x, "dtype") and x.dtype == direction_key.dtype
            )
            state = optax.tree.set(state, is_key, key=direction_key)
        return Standing(seed, 0, params, state)

    def train(self, epochs: int, start: Standing) -> Iterator[Standing]:
        """Yields the standing after each epoch, from a fresh start or a later one.

        A run that is continued equals one that was never stopped, bit for bit.
        """
        (_, data_key, _), (_, _, params, state, *_) = _keys(start.seed), start
        images, labels = map(jnp.asarray, self.data.train)
        for number in range(start.epoch, epochs):
            key = jax.random.fold_in(data_key, number)
            params, state, losses = self.epoch(params, state, key, images, labels)
            yield Standing(start.seed, number + 1, params, state, losses)

    def evaluate(self, params: Any, split: str) -> dict[str, float]:
        """``{"train_loss": …, "train_accuracy": …}``, or of the test images."""
        loss, accuracy = self._evaluate(params, *getattr(self.data, split))
        return {f"{split}_loss": float(loss), f"{split}_accuracy": float(accuracy)}


def _keys(seed: int) -> jax.Array:
    """The keys of the parameters, of the order of the data and of the directions."""
    return jax.random.split(jax.random.key(seed), 3)
