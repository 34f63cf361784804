"""Evolution strategies whose members differ by matrices of low rank."""

import jax
import jax.numpy as jnp
import optax

from experiments.methods.mean import mean_loss


def eggroll(
    pairs: int = 8, rank: int = 1, scale: float = 1e-2
) -> optax.GradientTransformationExtraArgs:
    r"""A step along the members of a population, each weighted by how well it did.

    .. math:: g = \frac1P \sum_p s_p E_p, \qquad E_p = A_p B_p^\top / \sqrt r, \qquad
      s_p = \frac{f_p(\theta + \sigma E_p) - f_p(\theta - \sigma E_p)}{\mathrm{rms}}

    with Gaussian factors, members in antithetic pairs, and differences divided by their
    root mean square over the population. Each pair has its own share of the batch, so
    that a step takes two forward passes whatever the number of pairs. What is no matrix
    moves along a Gaussian direction.

    Args:
      pairs: :math:`P`, a divisor of the batch size.
      rank: :math:`r`.
      scale: :math:`\sigma`.

    References:
      Sarkar et al., *Evolution Strategies at the Hyperscale*, 2025, arXiv:2511.16652.
    """

    def member(key, params):
        def direction(key, p):
            if p.ndim != 2:
                return jax.random.normal(key, p.shape, p.dtype)
            a, b = (
                jax.random.normal(own, (n, rank), p.dtype)
                for own, n in zip(jax.random.split(key), p.shape)
            )
            return a @ b.T / rank**0.5

        return jax.tree.map(direction, optax.tree.split_key_like(key, params), params)

    def update(updates, key, params=None, *, value_fn, batch):
        del updates
        key, own = jax.random.split(key)
        keys = jax.random.split(own, pairs)
        shares = jax.tree.map(lambda x: x.reshape(pairs, -1, *x.shape[1:]), batch)

        def difference(key, share):
            along, loss = member(key, params), mean_loss(value_fn, share)
            at = lambda step: loss(optax.tree.add_scale(params, step, along))
            return at(scale) - at(-scale)

        # They follow one another, so that one member is in memory, and are written out,
        # so that the compiler counts the operations of all.
        share = lambda i: jax.tree.map(lambda x: x[i], shares)
        differences = jnp.stack([difference(keys[i], share(i)) for i in range(pairs)])
        rms = jnp.sqrt(jnp.mean(differences**2))
        fitness = differences / jnp.maximum(rms, jnp.finfo(rms.dtype).tiny)

        def add(total, pair):
            key, weight = pair
            return optax.tree.add_scale(
                total, weight / pairs, member(key, params)
            ), None

        zeros = optax.tree.zeros_like(params)
        return jax.lax.scan(add, zeros, (keys, fitness))[0], key

    return optax.GradientTransformationExtraArgs(
        lambda params: jax.random.key(0), update
    )
