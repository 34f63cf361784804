"""The protocol of a problem: parameters, a loss, minibatches and an evaluation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

import fomoh_jax


class Problem(NamedTuple):
    """Something to train.

    Attributes:
      title: for people.
      init: ``init(seed)``, the parameters to start from.
      loss_of_one: ``loss_of_one(params, example)``.
      rematerialised: the same loss, of which a reverse pass keeps less; ``None`` where
        there is nothing to save.
      sample: ``sample(key)``, a batch of the training split.
      evaluate: ``evaluate(params, split)``, numbers by their names, of which ``loss``
        is one; ``split`` is "validation" or "test".
      in_tail: whether a leaf, by its path, belongs to the last block or the head;
        ``None`` where that would be all or nothing.
      passes: how long a run is, in the times of a forward pass of one batch.
      in_loop: whether steps may be the body of a compiled loop.
      is_reversible: whether a reverse pass can take the loss.
      stops_early: whether a run results in its parameters of the least validation
        loss, where all would learn the training split by heart; else in the last.
      target: a validation loss at which a run ends.
      rates: of methods by their names, the middle of the learning rates to choose from.
    """

    title: str
    init: Callable[[int], Any]
    loss_of_one: Callable[[Any, Any], jax.Array]
    rematerialised: Callable[[Any, Any], jax.Array] | None
    sample: Callable[[jax.Array], Any]
    evaluate: Callable[[Any, str], dict[str, float]]
    in_tail: Callable[[str], bool] | None
    passes: int
    in_loop: bool = True
    is_reversible: bool = True
    stops_early: bool = False
    target: float | None = None
    rates: Mapping[str, float] = {}

    def count_blocks(self) -> int:
        """The blocks that an estimate by activations can cut the loss into."""
        example = jax.tree.map(lambda x: x[0], self.sample(jax.random.key(0)))
        return len(fomoh_jax.blocks_of(self.loss_of_one, self.init(0), example))

    def tail(self, params: Any) -> Any:
        """A tree of Booleans like the parameters: true if "tail only" freezes it."""
        assert self.in_tail is not None
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not self.in_tail(jax.tree_util.keystr(path)), params
        )
