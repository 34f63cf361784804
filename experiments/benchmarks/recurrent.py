"""Recurrent networks as a ``lax.scan`` over the steps of sequences.

LSTM (Hochreiter and Schmidhuber, 1997) and GRU (Cho et al., 2014).
"""

import flax.linen as nn
import jax

from experiments.benchmarks.workloads import Workload, examples, of_flax

CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}


class Recurrent(nn.Module):
    """Logits from the last of a cell's outputs along sequences ``[B, T, features]``."""

    cell: type[nn.RNNCellBase]
    width: int

    @nn.compact
    def __call__(self, sequences: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.RNN(self.cell(self.width))(sequences)[:, -1])


def recurrent_network(cell: str, width: int, steps: int, batch: int) -> Workload:
    """Cross-entropy of sequences."""
    data = examples((batch, steps, 32), (batch,), 10)
    return of_flax(Recurrent(CELLS[cell], width), data)
