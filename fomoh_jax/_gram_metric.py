"""The metric ``VᵀV`` of a hyperplane: how long a step is, and what rounding hides."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rounding(size: Float[Array, "*batch k"]) -> Float[Array, "*batch 1"]:
    """The size that rounding hides beside the largest, along the last axis."""
    k = size.shape[-1]
    largest = jnp.max(size, axis=-1, keepdims=True)
    return k * jnp.finfo(size.dtype).eps * largest


def in_metric(
    curvature: Float[Array, "k k"], gram: Float[Array, "k k"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """``λ, B`` with ``BᵀGB = I`` and ``BᵀCB = diag(λ)``.

    Directions that depend on others to rounding are left out: their columns of ``B``
    are zero.
    """
    white = whitening(gram)
    eigenvalues, rotation = jnp.linalg.eigh(white.T @ curvature @ white)
    return eigenvalues, white @ rotation


def whitening(gram: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """``W`` with ``WᵀGW = I``; its columns are zero for what depends on the others."""
    unit = unit_scale(gram)
    lengths, axes = jnp.linalg.eigh(unit[:, None] * gram * unit[None])
    dependent = lengths <= rounding(jnp.abs(lengths))
    inverse = jnp.where(dependent, 0, 1 / jnp.sqrt(jnp.where(dependent, 1, lengths)))
    return unit[:, None] * axes * inverse[None]


def unit_scale(gram: Float[Array, "k k"]) -> Float[Array, " k"]:
    """Factors that scale each direction to unit length; zero for a zero direction.

    A gradient near convergence is thousands of times shorter than a random direction.
    Unscaled it would pass for one that depends on the others.
    """
    lengths = jnp.diagonal(gram)
    return jnp.where(lengths > 0, 1 / jnp.sqrt(jnp.where(lengths > 0, lengths, 1)), 0)


def length(
    coefficients: Float[Array, " k"], gram: Float[Array, "k k"]
) -> Float[Array, ""]:
    """``√(κᵀGκ)``, scaled so that no square overflows."""
    unit = unit_scale(gram)
    along = jnp.where(unit > 0, coefficients / jnp.where(unit > 0, unit, 1), 0)
    info = jnp.finfo(along.dtype)
    largest = jnp.clip(jnp.max(jnp.abs(along)), info.tiny, info.max)
    square = (along / largest) @ (unit[:, None] * gram * unit[None]) @ (along / largest)
    return largest * jnp.sqrt(jnp.maximum(square, 0))
