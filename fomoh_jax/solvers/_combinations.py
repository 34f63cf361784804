"""The combinations of a descent and a search that have a name."""

from typing import Literal

from fomoh_jax.solvers import descents, searches
from fomoh_jax.solvers._solver import Solver


def newton(jitter: float = 1e-3, growth: float = 10.0, attempts: int = 5) -> Solver:
    r"""Newton's step on the hyperplane, the paper's method.

    .. math:: \kappa = (V^\top H V + \delta I)^{-1}\, V^\top \nabla f

    where the jitter :math:`\delta` is zero unless the system is singular, and then the
    first of ``jitter``, ``jitter * growth``, … that makes it regular; if ``attempts``
    of them do not, :math:`\kappa = V^\top \nabla f`. That is what the reference
    implementation does when an inversion raises; here the eigenvalues tell, so that it
    works under ``jit``: a system is singular when, with the directions scaled to unit
    length, an eigenvalue is zero to rounding,
    :math:`|\lambda| \le k\, \epsilon \max |\lambda|`.

    Where the curvature is negative this steps uphill, as Newton's method does.

    Args:
      jitter: first value added to the eigenvalues of a singular system, in units of
        the curvature ``v_iᵀ H v_j``; positive.
      growth: factor between attempts, more than 1.
      attempts: number of values tried, at least 1.

    Returns:
      A solver.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0, 4.0]), 2 * jnp.eye(2))
      >>> solver = solvers.newton()
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)
      [1. 2.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3 (FoMoH-KD).
    """
    return Solver(descents.newton(jitter, growth, attempts), searches.constant())


def damped(damping: float = 1e-3) -> Solver:
    r"""Levenberg's damped Newton step, always downhill.

    .. math:: \kappa = (V^\top H V + \delta\, V^\top V)^{-1}\, V^\top \nabla f, \qquad
      \delta = \mathrm{damping} + \max(0, -\lambda_{\min})

    This is Newton's step for :math:`H + \delta I` on the hyperplane. The shift is
    raised by the most negative eigenvalue :math:`\lambda_{\min}` of the curvature in
    the metric :math:`V^\top V`, so that no eigenvalue is below ``damping``.

    Args:
      damping: positive, in units of the Hessian.

    Returns:
      A solver.

    Raises:
      ValueError: if ``damping`` is a number that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0, 4.0]), 2 * jnp.eye(2))
      >>> solver = solvers.damped(2.0)
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)
      [0.5 1. ]

    References:
      Levenberg, *A method for the solution of certain non-linear problems in least
      squares*, 1944.
    """
    return Solver(descents.damped(damping), searches.constant())


def saddle_free() -> Solver:
    r"""Newton's step with the absolute value of the curvature.

    .. math:: \kappa = B\, |\Lambda|^{-1} B^\top V^\top \nabla f, \qquad
      B^\top V^\top V B = I, \quad B^\top V^\top H V B = \Lambda

    Along negative curvature it goes downhill as far as Newton's step would go up. The
    eigenvalues :math:`\Lambda` are taken in the metric :math:`V^\top V`, so that the
    step depends on the hyperplane alone and not on the directions that span it. For one
    direction it is FoMoH's :math:`\nabla f \cdot v / |v^\top H v|`. Where the curvature
    is zero to rounding, the model has no minimum, and the step goes downhill as far as
    steps before it have lowered the loss as predicted.

    Returns:
      A solver.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> curvature = jnp.diag(jnp.array([2.0, -2.0]))
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([2.0, 4.0]), curvature)
      >>> solver = solvers.saddle_free()
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)
      [1. 2.]

    References:
      Dauphin et al., *Identifying and attacking the saddle point problem in
      high-dimensional non-convex optimization*, 2014, arXiv:1406.2572; Cobb et al.,
      2024, arXiv:2408.10419, section 3 (FoMoH).
    """
    return Solver(descents.saddle_free(), searches.constant())


def trust_region(
    radius: float = 1.0,
    *,
    max_radius: float = 1e6,
    measured_on: Literal["same", "next"] = "same",
    tries: int = 1,
    scaled: bool = False,
) -> Solver:
    r"""The minimum of the model within a radius, exactly.

    .. math:: \min_\kappa\; -\kappa^\top s + \tfrac12 \kappa^\top C \kappa
      \quad \text{where} \quad \kappa^\top M \kappa \le r^2, \quad M = S V^\top V S

    with :math:`S = I`, unless it is scaled. Solved by the eigenvalues of the curvature
    in the metric :math:`M`: the step is Newton's where that is a minimum and short
    enough, and otherwise the :math:`(C + \mu M)^{-1} s` of length :math:`r`, also in
    the hard case, where the slope along the direction of most negative curvature is
    zero.

    The radius follows the gain, the reduction of the loss over that of the model: it is
    divided by 4 when that is below 1/4, and doubled when it is above 3/4 and the step
    was as long as it could be. The step has to be taken whole: use a learning rate of
    1 after it.

    Args:
      radius: the first radius, in the units of the parameters; positive.
      max_radius: no radius is larger; at least ``radius``.
      measured_on: ``"same"`` evaluates the loss at the end of the step, on the same
        batch, by one more forward pass, and takes no step that raises it by more than
        rounding: for losses that are the same at each step. ``"next"`` takes every
        step, and judges it by the value of the next model, on another batch.
      tries: how many radii are tried at each step: the radius, a third of it, three
        times it, and so on in factors of three, at most ``max_radius``. The loss is
        evaluated at the end of each step, and the one that leads to the least loss is
        taken, with its radius (the first of those that do so to rounding). More than
        one needs ``measured_on="same"``.
      scaled: whether the length of a step counts more along directions with much
        curvature, for parameters of different units, and directions that mean the same
        at each step, such as ``directions.coordinates()``. :math:`S_{ii}^2` is then
        :math:`m_i` divided by the geometric mean of all :math:`m_j`, where :math:`m_i`
        is the largest :math:`|C_{ii}| / |v_i|^2` of the steps so far, decayed by a
        factor of 0.9 at each step; see ``descents.trust()``.

    Returns:
      A solver.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import QuadraticModel, solvers
      >>> model = QuadraticModel(jnp.array(1.0), jnp.array([3.0, 4.0]), jnp.eye(2))
      >>> solver = solvers.trust_region(1.0)
      >>> coefficients, _ = solver.solve(model, jnp.eye(2), solver.init(2))
      >>> print(coefficients)  # Newton's step, of length 5, cut
      [0.6 0.8]

    References:
      Moré and Sorensen, *Computing a trust region step*, 1983; Moré, *The
      Levenberg–Marquardt algorithm: implementation and theory*, 1978 (the scaling);
      Nocedal and Wright, *Numerical Optimization*, 2006, algorithm 4.1.
    """
    if not 0 < radius <= max_radius:
        raise ValueError(
            "trust_region needs 0 < radius <= max_radius; got "
            f"radius={radius}, max_radius={max_radius}."
        )
    search = searches.gain_ratio(
        radius, largest=max_radius, measured_on=measured_on, tries=tries
    )
    return Solver(descents.trust(scaled=scaled), search)


def self_tuning(initial: float = 0.05, growth: float = 0.1) -> Solver:
    r"""A step size tuned from the losses of later batches, at no extra evaluations.

    .. math:: \kappa = \sqrt\eta\; B \left(|\Lambda| + \left(1/\sqrt\eta - 1\right)
      \overline{|\Lambda|}\right)^{-1} B^\top V^\top \nabla f

    the step of ``descents.saddle_free()`` with the size :math:`\eta` that
    ``searches.self_tuning()`` derives from what part of the reductions that the models
    predicted has come: small where a step fits the noise of its batch, 1 where the loss
    is the same at each step. Where the model has slopes and no curvature at all, as
    that of a median regression, steps go as far as those before them have lowered the
    loss as predicted.

    Steps have to be taken as they are: whatever scales them afterwards, such as a
    learning rate, makes the predictions wrong.

    Args:
      initial: what the first step size grows from, in (0, 1].
      growth: the step size grows by at most this fraction a step; after ``n``
        predictions in a row that came true within a quarter, as they do where the loss
        is the same at each step, by ``n + 1`` times it; positive.

    Returns:
      A solver.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from fomoh_jax import directions, scale_by_hyperplane, solvers
      >>> tx = optax.chain(
      ...   scale_by_hyperplane(directions.gaussian(2), solvers.self_tuning()),
      ...   optax.scale(-1.0),
      ... )
      >>> loss = lambda x: jnp.sum((x - 1) ** 2 * jnp.arange(1.0, 6.0))
      >>> x = jnp.zeros(5)
      >>> state = tx.init(x)
      >>> @jax.jit
      ... def step(x, state):
      ...   updates, state = tx.update(None, state, x, value_fn=loss)
      ...   return optax.apply_updates(x, updates), state
      >>> for _ in range(100):
      ...   x, state = step(x, state)
      >>> print(bool(loss(x) < 1e-6))
      True
    """
    return Solver(descents.saddle_free(), searches.self_tuning(initial, growth))
