"""The optimisers of the studies, by name, with learning rates found by experiment."""

import optax

import fomoh_jax
from experiments.training import Method

NAMES = ("fgd", "fomoh", "fomoh_kd", "fomoh_bp", "sgd", "adam")

# The best of a grid on the 5,000 digits (see README, "Learning rates").
LEARNING_RATES = {
    ("softmax", "fgd"): 2e-3,
    ("softmax", "fomoh"): 0.7,
    ("softmax", "fomoh_bp"): 0.1,
    ("softmax", "sgd"): 0.03,
    ("softmax", "adam"): 3e-4,
    ("cnn", "fgd"): 1e-5,
    ("cnn", "fomoh"): 0.544,
    ("cnn", "fomoh_bp"): 0.5,
    ("cnn", "sgd"): 0.1,
    ("cnn", "adam"): 1e-3,
}


def default_learning_rate(model: str, name: str, k: int) -> float:
    """The learning rate that a study uses when none is given."""
    if name == "fomoh_kd":
        return 2 / (k + 2)
    return LEARNING_RATES[model, name]


def make_method(name: str, learning_rate: optax.ScalarOrSchedule, k: int) -> Method:
    """The optimiser of that name."""
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
