"""The optimisers of the studies, by name, with learning rates found by experiment."""

from typing import Any

import optax

import fomoh_jax
from experiments.methods.frozen import with_frozen
from experiments.training import Method

# These were picked by hand from a few: for softmax regression by the test loss after
# 2,000 steps of batch 1024 on the 5,000 digits; for the CNN they train it in a few
# hundred steps of batch 256, and fomoh's is that of the reference implementation at
# batch 2048.
LEARNING_RATES = {
    "softmax": {"fgd": 1e-3, "fomoh": 0.5, "fomoh_bp": 0.1, "sgd": 0.01, "adam": 3e-4},
    "cnn": {"fgd": 3e-4, "fomoh": 0.544, "fomoh_bp": 0.5, "sgd": 0.1, "adam": 1e-3},
    "vgg": {"fgd": 3e-4, "fomoh": 0.5, "fomoh_bp": 0.5, "sgd": 0.1, "adam": 1e-3},
}
FORWARD, BACKWARD = ("fgd", "fomoh", "fomoh_kd"), ("fomoh_bp", "sgd", "adam")
# Methods by perturbed activations.
PER_EXAMPLE = ("fomoh_ap", "tail", "ap_sgd", "ap_adam")


def make_method(
    name: str,
    rate: float | None,
    k: int,
    milestone: int | None = None,
    blocks: int | None = 2,
    frozen: Any = None,
) -> Method:
    """An optimiser of ``FORWARD``, ``BACKWARD`` or ``PER_EXAMPLE``.

    Args:
      name: of the optimiser. Those that begin with ap take the estimate by perturbed
        activations for the gradient; tail is fomoh_ap with what is frozen.
      rate: the learning rate; without one, fomoh_kd and fomoh_ap tune themselves.
      k: directions of fomoh_kd.
      milestone: step from which on the learning rate is a tenth, if any.
      blocks: of the estimate.
      frozen: of tail, a tree of Booleans like the parameters.
    """
    makers = {
        "fgd": fomoh_jax.fgd,
        "fomoh": fomoh_jax.fomoh,
        "fomoh_kd": lambda rate: fomoh_jax.fomoh_kd(k, learning_rate=rate),
        "fomoh_bp": fomoh_jax.fomoh_bp,
        "sgd": optax.sgd,
        "adam": optax.adam,
    }
    if milestone is not None:
        rate = optax.piecewise_constant_schedule(rate, {milestone: 0.1})
    if name == "fomoh_ap":
        return Method(fomoh_jax.fomoh_ap(blocks), per_example=True)
    if name == "tail":
        return Method(with_frozen(fomoh_jax.fomoh_ap(1), frozen), per_example=True)
    if name in PER_EXAMPLE:
        estimate = fomoh_jax.scale_by_activity_gradient(blocks=blocks)
        after = makers[name.removeprefix("ap_")](rate)
        return Method(optax.chain(estimate, after), per_example=True)
    return Method(makers[name](rate), name in BACKWARD)
