"""A language model, byte by byte, that is tuned to another kind of text.

It is trained on the modules of Python's standard library and tuned to the reference
manual of the language, as ``pydoc`` has it: ``pydoc_data/topics.py``, prose with
examples. Both come with Python, the checkpoint, which ``pretrain()`` made, with this
repository.
"""

import functools
import hashlib
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.methods import mean_loss
from experiments.minimisation import take_step
from experiments.sceptic.contenders import K
from experiments.sceptic.problem import Problem
from experiments.sceptic.transformer import LanguageModel

LENGTH, BATCH = 64, 32
SPSA = "FGD", "MeZO", "LOZO"
# Learning rates that differ from those of the methods, for all parameters and adapters.
RATES = {
    **dict.fromkeys(SPSA, 1e-4),
    "HiZOO": 1e-3,
    "EGGROLL": 1e-3,
    f"multi-tangent({K})": 30.0,
    "estimate, 2 blocks, Adam": 1e-4,
    "estimate, 3 blocks, Adam": 1e-4,
    "estimate, all blocks, Adam": 1e-4,
}
RATES_OF_ADAPTERS = {
    **dict.fromkeys(SPSA, 1e-2),
    "SGD": 3.0,
    "Adam": 3e-3,
    "Adam, rematerialised": 3e-3,
    "tail only, Adam": 3e-3,
    "HiZOO": 0.1,
    f"multi-tangent({K})": 300.0,
}
EVALUATED = 256  # sequences of each split
PRETRAINING = 5_000  # steps
CHECKPOINT = Path(__file__).with_name("language.msgpack")
# The committed results are of the manual in Python 3.12.1.
MANUAL_SHA256 = "9d0f3b01eb87a80fcbbc5072b9fc3ab9f5cb7b265b5377772d8f6883385d2a72"


def read_modules() -> np.ndarray:
    """The bytes of the standard library's top-level modules, shuffled."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    order = np.random.default_rng(0).permutation(len(files))
    return np.frombuffer(b"".join(files[i].read_bytes() for i in order), np.uint8)


def read_manual() -> dict[str, np.ndarray]:
    """The bytes of whole topics of the manual: train, validation and test."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    order = np.random.default_rng(0).permutation(len(names))
    texts = [topics[names[i]].encode() for i in order]
    ends = np.cumsum([len(text) for text in texts])
    last, middle = np.searchsorted(ends, ends[-1] * np.array([0.85, 0.7]))
    parts = {
        "train": texts[:middle],
        "validation": texts[middle:last],
        "test": texts[last:],
    }
    return {
        name: np.frombuffer(b"".join(part), np.uint8) for name, part in parts.items()
    }


def checksum(manual: dict[str, np.ndarray]) -> str:
    """SHA-256 of the manual, in the order in which it is used."""
    return hashlib.sha256(b"".join(x.tobytes() for x in manual.values())).hexdigest()


def make(rank: int = 0) -> Problem:
    """The problem of tuning all parameters, or adapters of that rank alone."""
    manual = read_manual()
    if checksum(manual) != MANUAL_SHA256:
        print("The manual of this Python is another one than that of the results.")
    params, loss_of_one = model_and_loss(pretrained(), rank)
    _, rematerialised = model_and_loss(pretrained(), rank, remat=True)
    held_out = {name: _sequences(manual[name]) for name in ("validation", "test")}
    evaluate = jax.jit(lambda params, texts: mean_loss(loss_of_one, texts)(params))
    adapters = f", adapters of rank {rank}" if rank else ""
    return Problem(
        f"language model{adapters}",
        init=lambda seed: params,
        loss_of_one=loss_of_one,
        rematerialised=rematerialised,
        sample=sampler(manual["train"]),
        evaluate=lambda at, split: {"loss": float(evaluate(at, held_out[split]))},
        in_tail=lambda path: path.startswith(("['blocks'][3]", "['norm']", "['head']")),
        passes=1200,
        rates=RATES_OF_ADAPTERS if rank else RATES,
    )


def model_and_loss(
    state: Any, rank: int = 0, remat: bool = False
) -> tuple[Any, Callable]:
    """The trained parameters of the model, and the loss of one text.

    Args:
      state: all parameters of the model without adapters, as nested dictionaries.
      rank: of the adapters, which are then all that is trained; 0 for none.
      remat: whether a reverse pass computes each block again.

    Returns:
      Nested dictionaries of parameters, and ``loss_of_one(params, text)``, the mean
      cross-entropy of each byte after the first.
    """
    model = LanguageModel(nnx.Rngs(0), length=LENGTH, rank=rank, remat=remat)
    kind = nnx.LoRAParam if rank else nnx.Param
    graph, trained, others = nnx.split(model, kind, ...)
    kept = others if rank else trained
    nnx.replace_by_pure_dict(kept, state)

    def loss_of_one(params, text):
        model = nnx.merge(graph, params, others)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model(text[:-1]), text[1:]
        )
        return jnp.mean(losses)

    return nnx.to_pure_dict(trained), loss_of_one


def sampler(data: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    """Batches of sequences that start anywhere."""
    data = jnp.asarray(data)

    def sample(key):
        starts = jax.random.randint(key, (BATCH, 1), 0, len(data) - LENGTH)
        return data[starts + jnp.arange(LENGTH + 1)].astype(jnp.int32)

    return sample


def _sequences(data: np.ndarray) -> jax.Array:
    """Equally spaced sequences, ``[n, length + 1]``."""
    starts = np.linspace(0, len(data) - LENGTH - 1, EVALUATED).astype(int)
    return jnp.asarray(data[starts[:, None] + np.arange(LENGTH + 1)], jnp.int32)


@functools.cache
def pretrained(file: Path = CHECKPOINT) -> Any:
    """The parameters that know Python's modules."""
    return flax.serialization.msgpack_restore(file.read_bytes())


def pretrain(steps: int = PRETRAINING, file: Path = CHECKPOINT) -> None:
    """Train from scratch by Adam, and write the checkpoint."""
    model = LanguageModel(nnx.Rngs(0), length=LENGTH)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params, loss_of_one = model_and_loss(params)
    sample = sampler(read_modules())
    schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, steps // 20, steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def train(params):
        def step(carry, key):
            mean = mean_loss(loss_of_one, sample(key))
            loss, gradient = jax.value_and_grad(mean)(carry[0])
            return take_step(tx, *carry, gradient), loss

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)

    (params, _), losses = train(params)
    print(f"mean loss of the last hundred steps: {jnp.mean(losses[-100:]):.3f}")
    file.write_bytes(flax.serialization.msgpack_serialize(jax.device_get(params)))
