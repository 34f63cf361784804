"""Minimising from several starts."""

import jax.numpy as jnp
import numpy as np
import optax

from experiments.minimisation import Contender, exact_gradient, minimise, steps_to


def bowl(x):
    return jnp.sum(x**2) / 2


def descent(*rates):
    make = lambda rate, key: optax.chain(exact_gradient(), optax.sgd(rate))
    return Contender(make, rates)


def test_gradient_descent_shrinks_a_bowl_by_its_rate():
    starts = np.array([[1.0, 2.0], [3.0, 0.0]])
    runs = minimise(bowl, descent(0.5), starts, 3)
    np.testing.assert_allclose(runs.points, starts / 8)
    expected = np.array([[2.5], [4.5]]) * 0.25 ** np.arange(4)
    np.testing.assert_allclose(runs.losses, expected)


def test_the_rate_of_the_least_final_loss_is_taken_and_a_nan_is_not():
    starts = np.ones((3, 2))
    assert minimise(bowl, descent(0.1, 0.9, np.nan, 1.95), starts, 4).rate == 0.9


def test_steps_to_a_target_are_infinite_where_it_is_never_met():
    losses = np.array([[3.0, 1.0, 2.0], [3.0, 3.0, 3.0]])
    np.testing.assert_array_equal(steps_to(losses, 1.0), [1, np.inf])
