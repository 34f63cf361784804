"""The methods and their learning rates."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

import fomoh_jax
from experiments import methods
from experiments.minimisation import exact_gradient
from experiments.sceptic.problem import Problem

Transformation = optax.GradientTransformationExtraArgs


class Contender(NamedTuple):
    """A method.

    Attributes:
      make: ``make(rate, problem, params)``, a transformation that takes the loss of one
        example and a batch; ``rate`` is ``None`` where the method has none.
      rate: in the middle of the learning rates to choose from, where the problem names
        no other.
      backpropagates: through the whole loss.
      rematerialised: whether it is given the loss of which a reverse pass keeps less.
      tail: whether it moves the last block and the head alone.
      tangents: whether it takes a tangent for each parameter.
      blocks: how many a loss must have; with fewer the method is another contender.
    """

    make: Callable[[float | None, Problem, Any], Transformation]
    rate: float | None = None
    backpropagates: bool = False
    rematerialised: bool = False
    tail: bool = False
    tangents: bool = False
    blocks: int = 0


def suits(contender: Contender, problem: Problem) -> bool:
    """Whether the method can be used on the problem."""
    if contender.tangents:
        return not problem.is_reversible
    if contender.rematerialised and problem.rematerialised is None:
        return False
    if contender.tail and problem.in_tail is None:
        return False
    if contender.blocks and contender.blocks > problem.count_blocks():
        return False
    return problem.is_reversible or not contender.backpropagates


def rates_of(method: str, problem: Problem) -> Sequence[float | None]:
    """Three learning rates to choose from; ``(None,)`` of a method that has none."""
    middle = problem.rates.get(method, CONTENDERS[method].rate)
    return (None,) if middle is None else (middle / 3, middle, 3 * middle)


def chained(first: Callable[[], Any], *rest: Callable[[float], Any]) -> Callable:
    """A chain of a link, and of links that take the learning rate."""
    return lambda rate, problem, params: optax.chain(first(), *(f(rate) for f in rest))


def tail_only(rate: float, problem: Problem, params: Any) -> Transformation:
    """Adam on the last block and the head, everything else frozen."""
    adam = methods.of_mean(optax.chain(exact_gradient(), optax.adam(rate)))
    return methods.with_frozen(adam, problem.tail(params))


def mean_gradient(by: Callable = jax.grad) -> Callable[[], Any]:
    """Makes the exact gradient of the mean loss, as the first link of a chain."""
    return lambda: methods.of_mean(exact_gradient(by))


def estimate(blocks: int | None) -> Callable[[], Any]:
    return lambda: fomoh_jax.scale_by_activity_gradient(blocks=blocks)


def without_rate(make: Callable[[], Transformation]) -> Callable:
    return lambda rate, problem, params: make()


sgd, adam = optax.scale_by_learning_rate, optax.adam
K = 8  # directions of the methods that take several

CONTENDERS = {
    "SGD": Contender(chained(mean_gradient(), sgd), 0.03, True),
    "Adam": Contender(chained(mean_gradient(), adam), 1e-3, True),
    "Adam, rematerialised": Contender(
        chained(mean_gradient(), adam), 1e-3, True, rematerialised=True
    ),
    "FoMoH-BP": Contender(
        lambda rate, *_: methods.of_mean(
            optax.chain(exact_gradient(), fomoh_jax.fomoh_bp(rate))
        ),
        0.3,
        True,
    ),
    "tail only, Adam": Contender(tail_only, 1e-3, tail=True),
    "Adam, a tangent a parameter": Contender(
        chained(mean_gradient(jax.jacfwd), adam), 1e-3, tangents=True
    ),
    "fomoh_ap()": Contender(without_rate(fomoh_jax.fomoh_ap)),
    "fomoh_ap(), rematerialised": Contender(
        without_rate(fomoh_jax.fomoh_ap), rematerialised=True
    ),
    "fomoh_ap(blocks=3)": Contender(
        without_rate(lambda: fomoh_jax.fomoh_ap(3)), blocks=3
    ),
    "fomoh_ap(blocks=None)": Contender(
        without_rate(lambda: fomoh_jax.fomoh_ap(None)), blocks=4
    ),
    "estimate, 2 blocks, Adam": Contender(chained(estimate(2), adam), 1e-3, blocks=2),
    "estimate, 3 blocks, Adam": Contender(chained(estimate(3), adam), 1e-3, blocks=3),
    "estimate, all blocks, Adam": Contender(
        chained(estimate(None), adam), 1e-3, blocks=4
    ),
    "FGD": Contender(lambda rate, *_: methods.of_mean(fomoh_jax.fgd(rate)), 3e-4),
    f"multi-tangent({K})": Contender(
        chained(lambda: methods.multi_tangent(K), sgd), 30.0
    ),
    "MeZO": Contender(chained(methods.mezo, sgd), 3e-4),
    "HiZOO": Contender(chained(methods.hizoo, sgd), 1e-2),
    "LOZO": Contender(chained(methods.lozo, sgd), 3e-4),
    "EGGROLL": Contender(chained(methods.eggroll, sgd), 3e-3),
    "FoMoH": Contender(lambda rate, *_: methods.of_mean(fomoh_jax.fomoh(rate)), 0.3),
    f"FoMoH-KD({K})": Contender(
        lambda rate, *_: methods.of_mean(fomoh_jax.fomoh_kd(K, learning_rate=rate)), 0.3
    ),
    f"fomoh_kd({K})": Contender(
        without_rate(lambda: methods.of_mean(fomoh_jax.fomoh_kd(K)))
    ),
}
