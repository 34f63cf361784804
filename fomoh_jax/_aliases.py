"""The methods of the paper, composed from the building blocks."""

from typing import Literal

import chex
import optax
from jaxtyping import PyTree

from fomoh_jax import directions, plans, solvers
from fomoh_jax._transforms import scale_by_forward_gradient, scale_by_hyperplane


def fgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    k: int = 1,
    key: chex.PRNGKey | int | None = None,
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Forward gradient descent.

    .. math:: \theta \leftarrow \theta
      - \eta\, \frac1k \sum_i (\nabla f \cdot v_i)\, v_i, \qquad v_i \sim N(0, I)

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      k: number of directions to average over.
      key, has_aux, aux_struct: as in :func:`fomoh_jax.scale_by_forward_gradient`.

    Returns:
      A gradient transformation whose ``update`` takes ``value_fn``.

    Raises:
      TypeError, ValueError: as :func:`fomoh_jax.scale_by_forward_gradient`, and if
        ``k`` is no Python integer of at least 1.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fomoh_jax
      >>> loss = lambda x: jnp.sum((x - 1.0) ** 2)
      >>> tx = fomoh_jax.fgd(0.05)
      >>> params = jnp.zeros(3)
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...   updates, state = tx.update(None, state, params, value_fn=loss)
      ...   params = optax.apply_updates(params, updates)
      >>> print(bool(loss(params) < 1e-3))
      True

    References:
      Baydin et al., *Gradients without Backpropagation*, 2022, arXiv:2202.08587.
    """
    return optax.chain(
        scale_by_forward_gradient(
            directions.gaussian(k), key=key, has_aux=has_aux, aux_struct=aux_struct
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def fomoh(
    learning_rate: optax.ScalarOrSchedule,
    *,
    plan: plans.Plan | Literal["auto"] = "auto",
    key: chex.PRNGKey | int | None = None,
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FoMoH: a second-order line search along a random direction.

    .. math:: \theta \leftarrow \theta
      - \eta\, \frac{\nabla f \cdot v}{|v^\top H v|}\, v, \qquad v \sim N(0, I)

    Args:
      learning_rate: :math:`\eta`, a number or a schedule; 1 goes to the minimum along
        the line.
      plan, key, has_aux, aux_struct: as in :func:`fomoh_jax.scale_by_hyperplane`; but
        one direction cannot be split over devices.

    Returns:
      A gradient transformation whose ``update`` takes ``value_fn``.

    Raises:
      TypeError, ValueError: as :func:`fomoh_jax.scale_by_hyperplane`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fomoh_jax
      >>> loss = lambda x: jnp.sum((x - 1.0) ** 2)
      >>> tx = fomoh_jax.fomoh(1.0)
      >>> params = jnp.zeros(3)
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...   updates, state = tx.update(None, state, params, value_fn=loss)
      ...   params = optax.apply_updates(params, updates)
      >>> print(bool(loss(params) < 1e-3))
      True

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3.
    """
    return optax.chain(
        scale_by_hyperplane(
            directions.gaussian(1),
            solvers.saddle_free(),
            key=key,
            plan=plan,
            has_aux=has_aux,
            aux_struct=aux_struct,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def fomoh_kd(
    k: int,
    *,
    learning_rate: optax.ScalarOrSchedule | None = None,
    solver: solvers.Solver | None = None,
    plan: plans.Plan | Literal["auto"] = "auto",
    key: chex.PRNGKey | int | None = None,
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FoMoH-KD: the minimum of the quadratic model on a random hyperplane.

    .. math:: \theta \leftarrow \theta
      - \eta\, V (V^\top H V)^{-1} V^\top \nabla f, \qquad V_{ij} \sim N(0, 1)

    Without a learning rate, :math:`\eta` tunes itself (``solvers.self_tuning()``). With
    one it is the paper's method, and with ``learning_rate=1`` and as many directions as
    parameters, Newton's.

    Args:
      k: number of directions.
      learning_rate: :math:`\eta`, a number or a schedule; 1 goes to the minimum of the
        model. Full steps overfit the minibatch, increasingly with ``k``.
      solver: how the k×k system is solved; by default ``solvers.self_tuning()`` without
        a learning rate, and the paper's ``solvers.newton()`` with one. The steps of a
        solver without a learning rate are taken whole.
      plan, key, has_aux, aux_struct: as in :func:`fomoh_jax.scale_by_hyperplane`.

    Returns:
      A gradient transformation whose ``update`` takes ``value_fn``.

    Raises:
      TypeError, ValueError: as :func:`fomoh_jax.scale_by_hyperplane`, and if ``k`` is
        no Python integer of at least 1.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fomoh_jax
      >>> def rosenbrock(x):
      ...   return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
      >>> tx = fomoh_jax.fomoh_kd(k=2, learning_rate=1.0)
      >>> params = jnp.array([-1.0, 1.0])
      >>> state = tx.init(params)
      >>> for _ in range(5):
      ...   updates, state = tx.update(None, state, params, value_fn=rosenbrock)
      ...   params = optax.apply_updates(params, updates)
      >>> print(jnp.round(params, 3))
      [1. 1.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 3 (FoMoH-KD).
    """
    if solver is None:
        solver = solvers.self_tuning() if learning_rate is None else solvers.newton()
    return optax.chain(
        scale_by_hyperplane(
            directions.gaussian(k),
            solver,
            key=key,
            plan=plan,
            has_aux=has_aux,
            aux_struct=aux_struct,
        ),
        optax.scale_by_learning_rate(1.0 if learning_rate is None else learning_rate),
    )


def fomoh_bp(
    learning_rate: optax.ScalarOrSchedule,
    *,
    plan: plans.Plan | Literal["auto"] = "auto",
    has_aux: bool = False,
    aux_struct: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FoMoH-BP: a second-order line search along the backpropagated gradient.

    .. math:: \theta \leftarrow \theta
      - \eta\, \frac{g^\top g}{|g^\top H g|}\, g, \qquad g = \nabla f

    Args:
      learning_rate: :math:`\eta`, a number or a schedule; 1 goes to the minimum along
        the gradient.
      plan, has_aux, aux_struct: as in :func:`fomoh_jax.scale_by_hyperplane`; but one
        direction cannot be split over devices.

    Returns:
      A gradient transformation whose ``update`` takes the gradient as updates, and
      ``value_fn``.

    Raises:
      TypeError, ValueError: as :func:`fomoh_jax.scale_by_hyperplane`; from ``update``,
        if the updates are ``None`` or have another structure than the parameters.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fomoh_jax
      >>> loss = lambda x: jnp.sum((x - 1.0) ** 2)
      >>> tx = fomoh_jax.fomoh_bp(1.0)
      >>> params = jnp.zeros(3)
      >>> state = tx.init(params)
      >>> grads = jax.grad(loss)(params)
      >>> updates, state = tx.update(grads, state, params, value_fn=loss)
      >>> print(optax.apply_updates(params, updates))
      [1. 1. 1.]

    References:
      Cobb et al., 2024, arXiv:2408.10419, section 4 (FoMoH-BP).
    """
    return optax.chain(
        scale_by_hyperplane(
            directions.incoming(),
            solvers.saddle_free(),
            plan=plan,
            has_aux=has_aux,
            aux_struct=aux_struct,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
