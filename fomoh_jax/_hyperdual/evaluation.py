"""A function evaluated on hyper-dual numbers, and what is read off its results."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, PyTree, Shaped

from fomoh_jax._hyperdual import local_ways, rules  # noqa: F401  (fill the slot_tables)
from fomoh_jax._hyperdual.channels import Channel
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.inlining import inlined
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._types import PyTreeDef
from fomoh_jax._xla import warn_if_unsound


def evaluate(
    fun: Callable,
    form: Form,
    primals: Sequence[PyTree],
    channels: Sequence[Channel],
    has_aux: bool = False,
    *,
    inline: bool = False,
) -> tuple[PyTree[HyperDual], PyTree[HyperDual]]:
    """``fun`` on hyper-dual numbers: ``(out, aux)`` with a number for each leaf.

    With ``inline``, calls are inlined and indices known, as local channels need it.
    """
    jaxpr, args, structure = to_jaxpr(fun, primals, channels, has_aux)
    program = inlined(jaxpr) if inline else jaxpr
    return structure.unflatten(interpret(program, form, args))


def to_jaxpr(
    fun: Callable, primals: Sequence[PyTree], channels: Sequence[Channel], has_aux: bool
) -> tuple[ClosedJaxpr, list[HyperDual], PyTreeDef]:
    """``fun`` as a jaxpr, its arguments as numbers, and the tree of ``(out, aux)``."""
    warn_if_unsound()  # all transformations begin here
    primals = jax.tree.map(jnp.asarray, tuple(primals))
    jaxpr, shapes = jax.make_jaxpr(fun, return_shape=True)(*primals)
    args = list(map(HyperDual, jax.tree.leaves(primals), channels))
    return jaxpr, args, jax.tree.structure(_split(shapes, has_aux))


def primals_of(numbers: PyTree[HyperDual]) -> PyTree[Array]:
    """The value of each number, as an array."""
    return jax.tree.map(lambda n: jnp.asarray(n.primal), numbers, is_leaf=_is_number)


def coefficients_of(
    numbers: PyTree[HyperDual], channel: str, size: int
) -> PyTree[Shaped[Array | np.ndarray, "{size} ..."]]:
    """A channel of each number, dense, with the stacking axis in front."""

    def dense(number: HyperDual):
        if not is_inexact(number.primal):
            return np.zeros((size, *jnp.shape(number.primal)), jax.dtypes.float0)
        return getattr(number, channel).whole(size).array

    return jax.tree.map(dense, numbers, is_leaf=_is_number)


def _is_number(x: object) -> bool:
    return isinstance(x, HyperDual)


def _split(outputs: PyTree, has_aux: bool) -> tuple[PyTree, PyTree]:
    """``(out, aux)``, where ``aux`` is ``None`` without ``has_aux``."""
    if not has_aux:
        return outputs, None
    if not (isinstance(outputs, tuple) and len(outputs) == 2):
        raise TypeError(
            "with has_aux=True, fun must return a pair (out, aux); got "
            f"{jax.tree.structure(outputs)}."
        )
    out, aux = outputs
    return out, aux
