"""The loss of one example as a flat list of equations, and how they are evaluated."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var
from jaxtyping import PyTree

from fomoh_jax._compat import called_jaxpr, open_jaxpr, scan_layout
from fomoh_jax._hyperdual.jaxprs import bind, eval_jaxpr
from fomoh_jax._types import Leaf, Program

# A jitted identity of this name marks where the user wants a cut.
MARK = "fomoh_jax_cut"
# The names of the primitive of jax.checkpoint.
CHECKPOINTS = {"remat", "remat2", "checkpoint"}
_INLINED = {"jit", "closed_call", "core_call", "xla_metadata_call"}
Values = dict[Var, Leaf]


def cut(x: jax.Array, name: str | None = None) -> jax.Array:
    """Marks ``x`` as a place where a model may be cut into blocks; returns ``x``.

    :func:`fomoh_jax.forward_value_and_grad` with ``blocks="marked"`` cuts at the marked
    arrays, and nowhere else. A mark has no other effect on any transformation.
    Inside ``jax.checkpoint``, ``jax.lax.cond``, ``jax.lax.while_loop`` and functions
    with derivatives of their own it has none at all: these are differentiated as a
    whole.

    Args:
      x: an activation, of any shape and floating-point dtype.
      name: what :func:`fomoh_jax.blocks_of` calls it.

    Returns:
      ``x``.

    Raises:
      TypeError: if ``x`` is no floating-point array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fomoh_jax
      >>> def model(w, x):
      ...   h = fomoh_jax.cut(jnp.tanh(x @ w[0]), "hidden")
      ...   return jnp.sum(h @ w[1])
      >>> w = (jnp.ones((2, 3)), jnp.ones((3, 1)))
      >>> print(jax.grad(model)(w, jnp.zeros(2))[1].T)
      [[0. 0. 0.]]
    """
    array = isinstance(x, (jax.Array, np.ndarray))
    if not array or not jnp.issubdtype(x.dtype, jnp.inexact):
        got = f"dtype {x.dtype}" if array else jax.tree.structure(x)
        raise TypeError(
            f"cut marks one floating-point array; got {got}. Where several must be cut "
            "together, concatenate them."
        )
    return _marker(name)(x)


@functools.cache
def _marker(name: str | None) -> Callable:
    """One function for each name, so that it is compiled once."""

    def marked(x):
        return x

    marked.__name__ = MARK if name is None else f"{MARK}:{name}"
    return jax.jit(marked)


def is_mark(eqn: JaxprEqn) -> bool:
    """Whether an equation is a user's mark."""
    return eqn.primitive.name == "jit" and eqn.params["name"].startswith(MARK)


def mark_name(eqn: JaxprEqn) -> str | None:
    """The name that the user gave a mark."""
    return eqn.params["name"].partition(":")[2] or None


def flattened(fun: Callable, *args: PyTree) -> tuple[ClosedJaxpr, PyTree]:
    """A function as a program without calls, and the shapes of what it returns.

    Jitted functions are inlined, so that a cut may lie inside them. Checkpointed ones
    and those with rules of their own stay: they are differentiated as a whole.
    """
    jaxpr, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    return flat(jaxpr), shapes


def flat(jaxpr: Program) -> ClosedJaxpr:
    """A program with its calls inlined."""

    def step(eqn: JaxprEqn, operands: list[Leaf]) -> list[Leaf]:
        if eqn.primitive.name in _INLINED and not is_mark(eqn):
            return eval_jaxpr(called_jaxpr(eqn.params), operands, step)
        return bind(eqn, operands)

    avals = [v.aval for v in open_jaxpr(jaxpr)[0].invars]
    return jax.make_jaxpr(lambda *args: eval_jaxpr(jaxpr, args, step))(*avals)


def scan_with(
    eqn: JaxprEqn, operands: Sequence[Leaf], step: Callable, extra: PyTree = None
) -> tuple[list[Leaf], PyTree]:
    """A scan equation with another body.

    ``step(values, time) -> (outputs, (summed, stacked))`` takes and returns what the
    body does; the sum over iterations of ``summed``, which begins at ``extra``, and the
    stack of the ``stacked`` come back beside the results.
    """
    layout = scan_layout(eqn.params, len(operands), len(eqn.outvars))
    length = eqn.params["length"]

    def body(carry, xs):
        state, total = carry
        time, *slices = xs
        values = list(operands)
        for places, parts in ((layout.carry, state), (layout.xs, slices)):
            for place, part in zip(places, parts):
                values[place] = part
        outs, more = step(values, time)
        summed, stacked = (None, None) if more is None else more
        total = jax.tree.map(jnp.add, total, summed)
        ys = [outs[j] for j in layout.ys]
        return ([outs[j] for j in layout.carry_out], total), (ys, stacked)

    carry = [operands[j] for j in layout.carry], extra
    xs = [jnp.arange(length), *(operands[j] for j in layout.xs)]
    (state, total), (ys, stacked) = lax.scan(
        body,
        carry,
        xs,
        length,
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    outs = dict(zip((*layout.carry_out, *layout.ys), (*state, *ys)))
    return [outs[i] for i in range(len(outs))], (total, stacked)
