"""The optimisers of the studies, by name, with learning rates found by experiment."""

import optax

import fomoh_jax
from experiments.training import Method

NAMES = ("fgd", "fomoh", "fomoh_kd", "fomoh_bp", "sgd", "adam")

# Picked by hand from a few: for softmax regression by the test loss after 2,000 steps
# of batch 1024 on the 5,000 digits; for the CNN they train it in a few hundred steps of
# batch 256, and fomoh's is that of the reference implementation at batch 2048.
LEARNING_RATES = {
    ("softmax", "fgd"): 1e-3,
    ("softmax", "fomoh"): 0.5,
    ("softmax", "fomoh_bp"): 0.1,
    ("softmax", "sgd"): 0.01,
    ("softmax", "adam"): 3e-4,
    ("cnn", "fgd"): 3e-4,
    ("cnn", "fomoh"): 0.544,
    ("cnn", "fomoh_bp"): 0.5,
    ("cnn", "sgd"): 0.1,
    ("cnn", "adam"): 1e-3,
    ("vgg", "fgd"): 3e-4,
    ("vgg", "fomoh"): 0.5,
    ("vgg", "fomoh_bp"): 0.5,
    ("vgg", "sgd"): 0.1,
    ("vgg", "adam"): 1e-3,
}


def default_learning_rate(model: str, name: str) -> float | None:
    """What is used when no learning rate is given; ``None`` is self-tuning."""
    return None if name == "fomoh_kd" else LEARNING_RATES[model, name]


def make_method(
    name: str, learning_rate: optax.ScalarOrSchedule | None, k: int
) -> Method:
    """The optimiser of that name; without a learning rate, one that tunes itself."""
    if learning_rate is None:
        if name != "fomoh_kd":
            raise ValueError(f"Only fomoh_kd tunes itself; {name} takes a number.")
        return Method(fomoh_jax.fomoh_kd(k), False)
    match name:
        case "fgd":
            return Method(fomoh_jax.fgd(learning_rate), False)
        case "fomoh":
            return Method(fomoh_jax.fomoh(learning_rate), False)
        case "fomoh_kd":
            return Method(fomoh_jax.fomoh_kd(k, learning_rate), False)
        case "fomoh_bp":
            return Method(fomoh_jax.fomoh_bp(learning_rate), True)
        case "sgd":
            return Method(optax.sgd(learning_rate), True)
        case "adam":
            return Method(optax.adam(learning_rate), True)
    raise ValueError(f"method must be one of {', '.join(NAMES)}; got {name!r}.")
