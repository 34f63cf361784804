"""Forward gradients by perturbed activations."""

from fomoh_jax._activations.estimate import forward_value_and_grad
from fomoh_jax._activations.program import cut
from fomoh_jax._activations.table import blocks_of

__all__ = ["blocks_of", "cut", "forward_value_and_grad"]
