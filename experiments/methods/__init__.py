"""Optimisers, as small optax transformations, each with the paper that it is from.

Those of ``by_name`` are what ``experiments.digits`` and ``experiments.studies`` train
with. Those of the other modules take the loss of one example, ``update(None, state,
params, value_fn=loss_of_one, batch=batch)``, so that all are called alike.
"""

from experiments.methods.by_name import (
    BACKWARD,
    FORWARD,
    LEARNING_RATES,
    PER_EXAMPLE,
    make_method,
)
from experiments.methods.frozen import estimated, with_frozen
from experiments.methods.mean import mean_loss, of_mean
from experiments.methods.population import eggroll
from experiments.methods.projected import multi_tangent
from experiments.methods.two_losses import hizoo, lozo, mezo

__all__ = [
    "BACKWARD",
    "FORWARD",
    "LEARNING_RATES",
    "PER_EXAMPLE",
    "eggroll",
    "estimated",
    "hizoo",
    "lozo",
    "make_method",
    "mean_loss",
    "mezo",
    "multi_tangent",
    "of_mean",
    "with_frozen",
]
