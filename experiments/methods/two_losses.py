"""Slopes along random directions by differences of two losses, and no derivative."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.methods.mean import mean_loss

SCALE = 1e-3  # how far the two points are from the parameters, by each element


def mezo(scale: float = SCALE) -> optax.GradientTransformationExtraArgs:
    r"""SPSA with a Gaussian direction, for both points on the same batch.

    .. math:: g = \frac{f(\theta + \epsilon z) - f(\theta - \epsilon z)}{2\epsilon}\, z,
      \qquad z \sim N(0, I)

    References:
      Malladi et al., *Fine-Tuning Language Models with Just Forward Passes*, 2023,
      arXiv:2305.17333.
    """

    def update(updates, key, params=None, *, value_fn, batch):
        del updates
        key, own = jax.random.split(key)
        z = optax.tree.random_like(own, params)
        slope = _slope(mean_loss(value_fn, batch), params, z, scale)
        return optax.tree.scale(slope, z), key

    return optax.GradientTransformationExtraArgs(
        lambda params: jax.random.key(0), update
    )


class HizooState(NamedTuple):
    """The next key, and the running diagonal of the Hessian."""

    key: jax.Array
    curvature: Any


def hizoo(
    smoothing: float = 1e-3, scale: float = SCALE
) -> optax.GradientTransformationExtraArgs:
    r"""SPSA along directions that a diagonal estimate of the Hessian has scaled.

    .. math:: h \leftarrow (1 - \alpha)\, h + \alpha\,
      \frac{|f_+ + f_- - 2 f|}{2 \epsilon^2}\, h z^2, \qquad
      f_\pm = f(\theta \pm \epsilon\, z / \sqrt h), \qquad
      g = \frac{f_+ - f_-}{2 \epsilon}\, \frac{z}{\sqrt h}

    with the :math:`h` of before in :math:`f_\pm` and the new one in :math:`g`. It takes
    three losses a step.

    Args:
      smoothing: :math:`\alpha`.
      scale: :math:`\epsilon`.

    References:
      Zhao et al., *Second-Order Fine-Tuning without Pain for LLMs: A Hessian Informed
      Zeroth-Order Optimizer*, 2024, arXiv:2402.15173.
    """

    def init(params):
        return HizooState(jax.random.key(0), optax.tree.ones_like(params))

    def update(updates, state, params=None, *, value_fn, batch):
        del updates
        key, own = jax.random.split(state.key)
        z = optax.tree.random_like(own, params)
        loss = mean_loss(value_fn, batch)
        scaled = lambda h: jax.tree.map(lambda z, h: z / jnp.sqrt(h), z, h)
        along = scaled(state.curvature)
        above, below = (
            loss(optax.tree.add_scale(params, step, along)) for step in (scale, -scale)
        )
        second = jnp.abs(above + below - 2 * loss(params)) / (2 * scale**2)
        curvature = jax.tree.map(
            lambda h, z: (1 - smoothing) * h + smoothing * second * h * z**2,
            *(state.curvature, z),
        )
        slope = (above - below) / (2 * scale)
        return optax.tree.scale(slope, scaled(curvature)), HizooState(key, curvature)

    return optax.GradientTransformationExtraArgs(init, update)


class LozoState(NamedTuple):
    """The next key, the right factors, and how many steps were made."""

    key: jax.Array
    factors: Any
    steps: jax.Array


def lozo(
    rank: int = 2, interval: int = 50, scale: float = SCALE
) -> optax.GradientTransformationExtraArgs:
    r"""SPSA along matrices of low rank, whose right factors stay for some steps.

    .. math:: Z = U V^\top, \qquad
      g = \frac{f(\theta + \epsilon Z) - f(\theta - \epsilon Z)}{2\epsilon}\,
      \frac{Z}{r}

    with a new Gaussian :math:`U` at each step and a new :math:`V` at each
    ``interval``. What is no matrix moves along a Gaussian direction, undivided.

    Args:
      rank: :math:`r`.
      interval: steps for which :math:`V` stays.
      scale: :math:`\epsilon`.

    References:
      Chen et al., *Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank
      Structures*, 2024, arXiv:2410.07698.
    """

    def right(key, params):
        keys = optax.tree.split_key_like(key, params)
        draw = lambda key, p: jax.random.normal(key, _right_shape(p, rank), p.dtype)
        return jax.tree.map(draw, keys, params)

    def init(params):
        key, own = jax.random.split(jax.random.key(0))
        return LozoState(key, right(own, params), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, value_fn, batch):
        del updates
        key, of_left, of_right = jax.random.split(state.key, 3)
        renewed = state.steps % interval == 0
        factors = jax.lax.cond(
            renewed, lambda: right(of_right, params), lambda: state.factors
        )
        keys = optax.tree.split_key_like(of_left, params)

        def direction(key, p, v):
            if p.ndim != 2:
                return jax.random.normal(key, p.shape, p.dtype)
            return jax.random.normal(key, (len(p), rank), p.dtype) @ v.T

        z = jax.tree.map(direction, keys, params, factors)
        slope = _slope(mean_loss(value_fn, batch), params, z, scale)
        step = jax.tree.map(lambda z: slope * z / (rank if z.ndim == 2 else 1), z)
        return step, LozoState(key, factors, state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _right_shape(p: jax.Array, rank: int) -> tuple[int, ...]:
    return (p.shape[1], rank) if p.ndim == 2 else (0,)


def _slope(loss, params, z, scale):
    above, below = (
        loss(optax.tree.add_scale(params, step, z)) for step in (scale, -scale)
    )
    return (above - below) / (2 * scale)
