"""Forward gradients by perturbed activations."""

from fomoh_jax._activations.block_table import blocks_of
from fomoh_jax._activations.estimate import forward_value_and_grad
from fomoh_jax._activations.program import cut

__all__ = ["blocks_of", "cut", "forward_value_and_grad"]
