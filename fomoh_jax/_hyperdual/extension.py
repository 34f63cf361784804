"""Rules for primitives of the user's own."""

from collections.abc import Callable

from jax.extend.core import Primitive

from fomoh_jax._hyperdual.interpreter import staged
from fomoh_jax._hyperdual.registry import R, rule_for


def register_rule(primitive: Primitive) -> Callable[[R], R]:
    r"""Gives a primitive a hyper-dual rule.

    A primitive needs no rule if ``jax.jvp`` can differentiate it twice: the generic
    rule then applies. A rule makes it faster, or makes it differentiable where JAX
    cannot differentiate it. It says how the primitive :math:`y = f(x)` acts on a
    number with tangents :math:`x_i` and second-order coefficients :math:`x_{ij}`,

    .. math::
      y_i = f'(x)[x_i], \qquad y_{ij} = f'(x)[x_{ij}] + f''(x)[x_i, x_j],

    and is a function ``rule(form, op, args)`` that returns one
    :class:`~fomoh_jax.hyperdual.HyperDual` for each result. ``args`` are the operands,
    of which at least one varies; ``op(*primals)`` applies the primitive and returns a
    list, ``op.params`` are its parameters, ``op.outputs`` the abstract values of its
    results; ``form`` knows which pairs are wanted: ``form.product(a, b)`` is
    :math:`a_i b_j`, ``form.cross(a, b)`` is :math:`a_i b_j + a_j b_i`, and
    ``form.bilinear(B, a, b, 0)`` is :math:`B(a_i, b_j) + B(a_j, b_i)`. Channels, the
    ``tangents`` and ``seconds`` of a number, are added to each other and multiplied by
    arrays; ``hyperdual.apply_linear`` maps a linear function over those of several
    operands. A rule need not check whether a channel is zero.

    For a primitive that JAX can differentiate and that is elementwise, linear, bilinear
    or constant, the rule of its family is enough:
    ``register_rule(my_p)(hyperdual.elementwise)``, or ``linear``, ``bilinear``,
    ``constant``.

    Args:
      primitive: a ``jax.extend.core.Primitive``. It may be one of JAX's: the new rule
        takes the place of the old. Functions that were compiled before keep the old.

    Returns:
      A decorator, which returns the rule unchanged.

    Raises:
      TypeError: if ``primitive`` is no primitive; when the rule is used, if it does not
        return a list of one ``HyperDual`` for each result.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.extend.core import Primitive
      >>> import fomoh_jax
      >>> from fomoh_jax.hyperdual import HyperDual
      >>> cube_p = Primitive("cube")  # JAX knows no derivative of it
      >>> _ = cube_p.def_impl(lambda x: x**3)
      >>> _ = cube_p.def_abstract_eval(lambda x: x)
      >>> @fomoh_jax.register_rule(cube_p)
      ... def cube_rule(form, op, args):
      ...   (x,) = args
      ...   first, second = 3 * x.primal**2, 6 * x.primal
      ...   curved = second * form.product(x.tangents, x.tangents)
      ...   return [HyperDual(*op(x.primal), first * x.tangents,
      ...                     first * x.seconds + curved)]
      >>> print(fomoh_jax.hessian(cube_p.bind)(jnp.array(2.0)))
      12.0
    """
    if not isinstance(primitive, Primitive):
        raise TypeError(
            "primitive must be a jax.extend.core.Primitive, such as jax.extend.core."
            f"primitives.tanh_p; got {primitive!r}."
        )

    def register(function: R) -> R:
        rule_for(primitive, function)
        staged.cache_clear()  # what was interpreted by the rule before
        return function

    return register
