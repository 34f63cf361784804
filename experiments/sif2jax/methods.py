"""Minimisers as one step each, in a form that a compiled loop repeats."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix

import fomoh_jax
from experiments.minimisation import take_step
from fomoh_jax import directions, plans, solvers

Loss = Callable[[jax.Array], jax.Array]


class Method(NamedTuple):
    """A minimiser.

    Attributes:
      init: ``init(loss, x)``, its state.
      step: ``step(loss, x, state)``, the next point and state.
      failures: exceptions that are a result of a run and are recorded. Any other one is
        a fault of this program and is raised.
    """

    init: Callable[[Loss, jax.Array], Any]
    step: Callable[[Loss, jax.Array, Any], tuple[jax.Array, Any]]
    failures: tuple[type[Exception], ...] = ()


# Numbers that overflow; equinox's and XLA's errors; what JAX cannot trace.
RIVALS_FAILURES = ArithmeticError, RuntimeError, TypeError, ValueError


def of_optax(
    make: Callable[[int], Any], *, with_gradient: bool, failures: tuple = ()
) -> Method:
    """A transformation that takes ``value_fn``, of so many variables."""

    def step(loss, x, state):
        extra, gradient = {"value_fn": loss}, jnp.zeros_like(x)
        if with_gradient:  # which a line search may have left
            value, gradient = optax.value_and_grad_from_state(loss)(x, state=state)
            extra |= {"value": value, "grad": gradient}
        return take_step(make(x.size), x, state, gradient, **extra)

    return Method(lambda loss, x: make(x.size).init(x), step, failures)


def of_optimistix(solver: Any) -> Method:
    """A minimiser of optimistix, which may end by itself; here it does not.

    A step of optimistix evaluates the loss once, and may be refused. Here a step is
    ``EVALUATIONS`` of those, which take about as long as a step of ours.
    """
    tags = frozenset()

    def init(loss, x):
        fun = lambda x, _: (loss(x), None)
        out = jax.eval_shape(loss, x)
        state = solver.init(fun, x, None, {}, out, None, tags)
        return eqx.filter(state, eqx.is_array)

    def step(loss, x, arrays):
        fun = lambda x, _: (loss(x), None)
        out = jax.eval_shape(loss, x)
        made = eqx.filter_eval_shape(solver.init, fun, x, None, {}, out, None, tags)
        static = eqx.filter(made, eqx.is_array, inverse=True)
        static = eqx.filter(static, lambda x: not isinstance(x, jax.ShapeDtypeStruct))

        def evaluation(_, carry):
            x, arrays = carry
            state = eqx.combine(arrays, static)
            x, state, _ = solver.step(fun, x, None, {}, state, tags)
            return x, eqx.filter(state, eqx.is_array)

        return jax.lax.fori_loop(0, EVALUATIONS, evaluation, (x, arrays))

    return Method(init, step, RIVALS_FAILURES)


def newton_step(loss: Loss, x: jax.Array, state: tuple) -> tuple[jax.Array, tuple]:
    """Newton's step by ``jax.hessian``, without any safeguard."""
    slope, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    step = jnp.linalg.solve(hessian, slope)
    return x - jnp.where(jnp.all(jnp.isfinite(step)), step, 0), state


def trust_region(**kwargs: Any) -> Method:
    """Newton's method within a trust region, along all coordinates.

    A forward pass takes time with the square of their number; where they are many, the
    model is computed by a reverse pass as well.
    """

    def make(size):
        along = fomoh_jax.scale_by_hyperplane(
            directions.coordinates(),
            solvers.trust_region(**kwargs),
            plan=plans.forward() if size <= FORWARD else plans.adjoint(),
        )
        return optax.chain(along, optax.scale(-1.0))

    return of_optax(make, with_gradient=False)


FORWARD = 25  # variables
EVALUATIONS = 8
TOLERANCE = 1e-30  # optimistix is not to end by itself
METHODS = {
    "trust region": trust_region(),
    "trust region, five radii, scaled": trust_region(tries=5, scaled=True),
    "Newton, jax.hessian": Method(lambda loss, x: (), newton_step, RIVALS_FAILURES),
    "optimistix BFGS": of_optimistix(optimistix.BFGS(TOLERANCE, TOLERANCE)),
    "optimistix L-BFGS": of_optimistix(optimistix.LBFGS(TOLERANCE, TOLERANCE)),
    "optax L-BFGS": of_optax(
        lambda size: optax.lbfgs(), with_gradient=True, failures=RIVALS_FAILURES
    ),
}
