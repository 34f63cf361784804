"""The methods, and what each of them is tried with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

import fomoh_jax
from experiments import methods
from experiments.sceptic.problem import Problem

Transformation = optax.GradientTransformationExtraArgs


class Contender(NamedTuple):
    """A method.

    Attributes:
      make: ``make(rate, problem, params)``, a transformation that takes the loss of one
        example and a batch; ``rate`` is ``None`` where there are no ``rates``.
      rates: learning rates to choose from.
      backpropagates: through the whole loss.
      rematerialised: whether it is given the loss of which a reverse pass keeps less.
      tail: whether it moves the last block and the head alone.
      tangents: whether it takes a tangent for each parameter.
    """

    make: Callable[[float | None, Problem, Any], Transformation]
    rates: Sequence[float] = ()
    backpropagates: bool = False
    rematerialised: bool = False
    tail: bool = False
    tangents: bool = False


def suits(contender: Contender, problem: Problem) -> bool:
    """Whether the method can do it at all."""
    if contender.tangents:
        return not problem.is_reversible
    if contender.rematerialised and problem.rematerialised is None:
        return False
    if contender.tail and problem.in_tail is None:
        return False
    return problem.is_reversible or not contender.backpropagates


def rates_of(method: str, problem: Problem) -> Sequence[float | None]:
    """The learning rates to choose from; ``(None,)`` of a method that has none."""
    return problem.rates.get(method, CONTENDERS[method].rates) or (None,)


def chained(first: Callable[[], Any], *rest: Callable[[float], Any]) -> Callable:
    """A chain of a link, and of links that take the learning rate."""
    return lambda rate, problem, params: optax.chain(first(), *(f(rate) for f in rest))


def tail_only(rate: float, problem: Problem, params: Any) -> Transformation:
    """Adam on the last block and the head, everything else frozen."""
    adam = optax.chain(methods.backpropagated(), optax.adam(rate))
    return methods.with_frozen(adam, problem.tail(params))


def estimate(blocks: int | None) -> Callable[[], Any]:
    return lambda: fomoh_jax.scale_by_activity_gradient(blocks=blocks)


def without_rate(make: Callable[[], Transformation]) -> Callable:
    return lambda rate, problem, params: make()


sgd, adam = optax.scale_by_learning_rate, optax.adam
WIDE = (1e-2, 3e-2, 1e-1)
ADAM = (3e-4, 1e-3, 3e-3)
K = 8  # directions of what takes several

CONTENDERS = {
    "SGD": Contender(chained(methods.backpropagated, sgd), (0.03, 0.1, 0.3), True),
    "Adam": Contender(chained(methods.backpropagated, adam), ADAM, True),
    "Adam, rematerialised": Contender(
        chained(methods.backpropagated, adam), ADAM, True, rematerialised=True
    ),
    "FoMoH-BP": Contender(
        lambda rate, *_: optax.chain(
            methods.backpropagated(), methods.of_mean(fomoh_jax.fomoh_bp(rate))
        ),
        (0.1, 0.3, 1.0),
        True,
    ),
    "tail only, Adam": Contender(tail_only, ADAM, tail=True),
    "Adam, a tangent a parameter": Contender(
        chained(methods.forward_accumulated, adam), ADAM, tangents=True
    ),
    "fomoh_ap()": Contender(without_rate(fomoh_jax.fomoh_ap)),
    "fomoh_ap(blocks=3)": Contender(without_rate(lambda: fomoh_jax.fomoh_ap(3))),
    "fomoh_ap(blocks=None)": Contender(without_rate(lambda: fomoh_jax.fomoh_ap(None))),
    "estimate, 2 blocks, Adam": Contender(chained(estimate(2), adam), ADAM),
    "estimate, 3 blocks, Adam": Contender(chained(estimate(3), adam), ADAM),
    "estimate, all blocks, Adam": Contender(chained(estimate(None), adam), ADAM),
    "FGD": Contender(
        lambda rate, *_: methods.of_mean(fomoh_jax.fgd(rate)), (1e-4, 3e-4, 1e-3)
    ),
    f"multi-tangent({K})": Contender(
        chained(lambda: methods.multi_tangent(K), sgd), (0.3, 3.0, 30.0)
    ),
    "MeZO": Contender(chained(methods.mezo, sgd), (1e-4, 3e-4, 1e-3)),
    "HiZOO": Contender(chained(methods.hizoo, sgd), (1e-4, 3e-4, 1e-3)),
    "LOZO": Contender(chained(methods.lozo, sgd), (1e-4, 3e-4, 1e-3)),
    "EGGROLL": Contender(chained(methods.eggroll, sgd), (1e-4, 3e-4, 1e-3)),
    "FoMoH": Contender(
        lambda rate, *_: methods.of_mean(fomoh_jax.fomoh(rate)), (0.1, 0.3, 1.0)
    ),
    f"FoMoH-KD({K})": Contender(
        lambda rate, *_: methods.of_mean(fomoh_jax.fomoh_kd(K, rate)), WIDE
    ),
    f"fomoh_kd({K})": Contender(
        without_rate(lambda: methods.of_mean(fomoh_jax.fomoh_kd(K)))
    ),
}
