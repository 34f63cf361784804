"""The curvature of few outputs by one reverse pass.

Second-order coefficients obey ``y_s = L x_s + source``, where the source is made of
tangents and ``L`` is the derivative of the program itself. So

    v_iᵀ H v_j = Σ over the sources of ⟨λ, source_ij⟩

with the cotangents ``λ`` of an ordinary backward pass: one, whatever ``k``. Nothing of
the size ``k²`` is carried. A source ``φ'' x_i x_j`` meets ``λ`` in one matrix product
of the tangents with themselves, a bilinear one in ``k`` transposed products. Beside the
``2k`` products of the tangents that is all, where forward over reverse takes ``6k`` and
a forward pass ``k²``. The price is that of reverse mode: the tangents of every layer
are kept until ``λ`` comes, and there is no reverse pass through a ``while`` loop.

A source is a function of the wanted table, ``[k, k]``, which is linear in it (its value
is never looked at) and whose transpose maps ``λ`` to ``⟨λ, source_ij⟩``. The backward
pass with respect to the table then adds all of them up, also those inside of loops.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, ArrayLike, Float, PyTree

from fomoh_jax._hyperdual.channels import ZERO, Channel, Stack, stacks_of
from fomoh_jax._hyperdual.form import Bilinear, Form
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.left_out import leaves_out, times_unless_left_out
from fomoh_jax._hyperdual.mesh_axes import (
    check_reverse_pass,
    in_shard_map,
    varies_along,
    varying_alike,
)
from fomoh_jax._hyperdual.number import HyperDual, is_inexact
from fomoh_jax._hyperdual.pair_forms import Pairs
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._hyperdual.trees import register_tree
from fomoh_jax._types import Leaf


def adjoint() -> Plan:
    """One forward pass of first order, and one reverse pass for each output element.

    Each reverse pass computes the whole curvature of one element of the output, at the
    cost of about ``3k`` evaluations of the function; a forward pass carries about ``k²
    / 2`` coefficients instead. It stores the ``k`` tangents of every layer. It cannot
    differentiate a ``while`` loop whose carry has second-order coefficients; in a
    product with the Hessian, it cannot differentiate any ``while`` loop that depends on
    the arguments. For a scalar function of many variables it is the faster plan. Where
    reverse mode can take the function, ``jax.hessian`` may be faster still.

    Returns:
      A plan.

    Raises:
      ValueError: where the plan is used, if there is such a loop.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import hessian, plans
      >>> f = lambda x: jnp.sum(x ** 3)
      >>> print(hessian(f, plan=plans.adjoint())(jnp.array([1.0, 2.0])))
      [[ 6.  0.]
       [ 0. 12.]]
    """
    return Adjoint()


@dataclasses.dataclass(frozen=True)
class Adjoint(Plan):
    """The plan that :func:`adjoint` returns."""

    def curvatures(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        return _curvatures(jaxpr, k, args, wanted)

    def products(
        self,
        columns: Callable,
        slopes: Callable,
        primals: PyTree,
        point: Float[Array, " D"],
    ) -> jax.Array:
        along = varies_along(jax.eval_shape(slopes, point))
        jaxpr = jax.make_jaxpr(slopes)(point)
        check_reverse_pass("under plans.adjoint()", jaxpr, [along])
        return jax.jacrev(slopes)(varying_alike(point, along))


@register_tree
@dataclasses.dataclass(frozen=True)
class Sources(Form):
    """One second-order coefficient: the sum of what comes from each source.

    Attributes:
      k: number of directions.
      ordered: ``[k, k]``, to which the reverse pass leads; of its cotangent the
        entries with ``i <= j`` belong to the curvature.
      halves: ``[k, k]`` alike; the sum of its cotangent and the transpose belongs to
        the curvature.
      selects: whether the program may leave elements out, see :func:`leaves_out`.
    """

    k: int = dataclasses.field(metadata={"static": True})
    ordered: jax.Array
    halves: jax.Array
    selects: bool = dataclasses.field(metadata={"static": True})

    is_reversed = True

    @property
    def q(self) -> int:
        return 1

    # In a branch that is not taken, as vmap of lax.cond has it, derivatives may be
    # infinite, and tangents NaN. The cotangent there is zero, and zero wins: a sum over
    # all that the output depends on would not be finite, and the forward pass is.

    def scale_seconds(self, coefficient: ArrayLike, channel: Channel) -> Channel:
        multiply = times_unless_left_out if self.selects else jnp.multiply
        return channel.scaled(coefficient, multiply)

    def _reached(self, cotangent: jax.Array, stacked: jax.Array) -> jax.Array:
        """Arrays ``[n, *s]``, zero where the cotangent ``[*s]`` leaves them out."""
        if not self.selects:
            return stacked
        left_out = (cotangent[None] == 0) & ~jnp.isfinite(stacked)
        return jnp.where(left_out, 0, stacked)

    def _met(self, cotangent: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        """``⟨cotangent, a_i b_j⟩``."""
        a, b = self._reached(cotangent, a), self._reached(cotangent, b)
        return _gram(cotangent[None] * a, b)

    def cross(self, a: Channel, b: Channel) -> Channel:
        if a is b:
            return 2 * self.product(a, a)
        stacks = stacks_of(a, b)
        if stacks is None:
            return ZERO
        return self._met_by(self.halves, *stacks)

    def _product(self, a: Stack, b: Stack) -> Channel:
        return self._met_by(self.ordered, a, b)

    def _met_by(self, table: jax.Array, a: Stack, b: Stack) -> Channel:
        """The source ``a_i b_j``, elementwise, of one of the tables."""
        a, b = a.moved(0), b.moved(0)

        def contract(cotangent: jax.Array) -> jax.Array:
            return self._spread(a, b, self._met(cotangent, a.array, b.array))

        return self._source(table, a.array[0] * b.array[0], contract)

    def _bilinear(self, product: Bilinear, a: Stack, b: Stack, axis: int) -> Channel:
        a, b = a.moved(0), b.moved(0)
        # Onto the smaller operand, which the other then meets in a matrix product.
        if a.array[0].size < b.array[0].size:
            swapped = Bilinear(lambda y, x: product(x, y))
            return self._bilinear(swapped, b, a, axis)

        def contract(cotangent: jax.Array) -> jax.Array:
            def pulled(x: jax.Array) -> jax.Array:
                along = jax.linear_transpose(lambda y: product(x, y), b.array[0])
                return along(cotangent)[0]

            return self._spread(a, b, _gram(jax.vmap(pulled)(a.array), b.array))

        return self._source(self.halves, product(a.array[0], b.array[0]), contract)

    def _quadratic(self, function, xs, out_axes) -> list[Channel]:
        pairs = Pairs(self.k)
        i, j = pairs.pairs

        def entered(dense: Channel) -> Channel:
            if dense.is_zero:
                return ZERO
            array = dense.whole(pairs.q).array

            def contract(cotangent: jax.Array) -> jax.Array:
                reached = self._reached(cotangent, array)
                along = _gram(reached, cotangent[None])[:, 0]
                return jnp.zeros((self.k, self.k), along.dtype).at[i, j].set(along)

            return self._source(self.ordered, array[0], contract)

        dense = pairs.quadratic(function, xs, [0] * len(out_axes))
        return list(map(entered, dense))

    def _source(self, table: jax.Array, like: jax.Array, contract: Callable) -> Channel:
        """Coefficients like ``like``, linear in a table as ``contract`` transposed."""
        # A value that contract closes over may belong to a loop's trace, which the
        # reverse pass must be able to leave: it becomes an argument.
        closed = jax.make_jaxpr(contract)(like)
        operands = closed.consts
        # From jax 0.12 on a jaxpr holds its constants; what outlives a trace must not.
        program = ClosedJaxpr(closed.jaxpr, [None] * len(operands)).jaxpr
        # In a shard_map each device meets its own λ, and what the table is made to vary
        # by here is summed over the devices on the way back.
        table = table + lax.full_like(like, 0, dtype=table.dtype, shape=())
        dtype = table.dtype

        def value(table, like, *consts):
            del table, consts
            return jnp.zeros_like(like)

        def forward(table, like, *consts):
            return value(table, like), consts

        def backward(consts, cotangent):
            (met,) = jaxpr_as_fun(ClosedJaxpr(program, consts))(cotangent)
            met = met if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.real(met)
            return met.astype(dtype), None, *[None] * len(consts)

        source = jax.custom_vjp(value)
        source.defvjp(forward, backward)
        return Stack(lax.expand_dims(source(table, like, *operands), (0,)))

    def _spread(self, a: Stack, b: Stack, block: jax.Array) -> jax.Array:
        """``[k, k]`` from what is between the directions that are present."""
        if a.present is None and b.present is None:
            return block
        places = np.ix_(a.indices, b.indices)
        return jnp.zeros((self.k, self.k), block.dtype).at[places].set(block)


def _gram(a: jax.Array, b: jax.Array) -> jax.Array:
    """``⟨a_i, b_j⟩`` of two stacks along leading axes, in at least float32."""
    places = tuple(range(1, a.ndim))
    return lax.dot_general(
        a,
        b,
        ((places, places), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=_wide(a.dtype, b.dtype),
    )


def _wide(*dtypes: jnp.dtype) -> jnp.dtype:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *dtypes)


class _ForwardPass(NamedTuple):
    """A forward pass of first order, from which reverse passes begin.

    Attributes:
      numbers: the outputs, with their tangents.
      values: for each output that is wanted, a second-order coefficient whose value is
        never looked at, or None if it has no curvature.
      pull: from cotangents of these to those of the two tables of :class:`Sources`.
    """

    numbers: list[HyperDual]
    values: list[Array | None]
    pull: Callable


def _curvatures(
    jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
) -> tuple[list[HyperDual], list[Leaf]]:
    args = [arg.stored() for arg in args]  # the reverse pass keeps the tangents
    selects = leaves_out(jaxpr)

    def forward_pass(axes: Collection[str]) -> _ForwardPass:
        return _forward_pass(jaxpr, k, varying_alike(args, axes), wanted, selects, axes)

    # Inside a shard_map the reverse pass to what is the same everywhere sums over the
    # devices: right for a loss that is a sum over them, and not for one of each.
    axes = [frozenset()] * wanted
    if in_shard_map():
        shapes = jax.eval_shape(lambda: forward_pass(()).values)
        axes = list(map(varies_along, shapes))
    check_reverse_pass("under plans.adjoint()", jaxpr, axes)
    # Passes run in the order of the results, which is the same in every process.
    passes = {over: forward_pass(over) for over in dict.fromkeys(axes or [frozenset()])}
    numbers = [passes[over].numbers[n] for n, over in enumerate(axes)]
    numbers += passes[min(passes, key=len)].numbers[wanted:]
    curvatures = [_curvature(passes[over], n, k, over) for n, over in enumerate(axes)]
    return numbers, curvatures


def _forward_pass(
    jaxpr: ClosedJaxpr,
    k: int,
    args: Sequence[HyperDual],
    wanted: int,
    selects: bool,
    axes: Collection[str],
) -> _ForwardPass:
    """A forward pass, with tables that vary along axes of a mesh as the numbers do."""
    dtypes = [x.primal.dtype for x in args if not x.tangents.is_zero]
    table = varying_alike(jnp.zeros((k, k), _wide(*dtypes)), axes)

    def seconds(ordered: jax.Array, halves: jax.Array):
        outs = interpret(jaxpr, Sources(k, ordered, halves, selects), args)
        numbers = [HyperDual(out.primal, out.tangents) for out in outs]
        values = [
            None if out.seconds.is_zero else out.seconds.coefficient(0)
            for out in outs[:wanted]
        ]
        return values, numbers

    values, pull, numbers = jax.vjp(seconds, table, table, has_aux=True)
    return _ForwardPass(numbers, values, pull)


def _curvature(found: _ForwardPass, place: int, k: int, axes: Collection[str]) -> Leaf:
    """``[k, k, *out]``, of an output: one reverse pass for each of its elements."""
    value = found.values[place]
    if value is None:
        return _no_curvature(k, found.numbers[place].primal)
    along = partial(_along, found, place)
    if value.shape == ():
        return along(jnp.ones_like(value))
    if not value.size:
        return jnp.zeros((k, k, *value.shape), value.dtype)
    basis = jnp.eye(value.size, dtype=value.dtype).reshape(-1, *value.shape)
    tables = jax.vmap(along, out_axes=-1)(varying_alike(basis, axes))
    return tables.reshape(k, k, *value.shape)


def _along(found: _ForwardPass, place: int, cotangent: jax.Array) -> jax.Array:
    """``[k, k]``, the curvature of an output along a cotangent of it."""

    def part(cotangent: jax.Array) -> jax.Array:
        zeros = [None if v is None else jnp.zeros_like(v) for v in found.values]
        tables = found.pull([*zeros[:place], cotangent, *zeros[place + 1 :]])
        # In one kernel with their transposes XLA compiles the sums very slowly.
        ordered, halves = lax.optimization_barrier(tables)
        i, j = np.indices(ordered.shape)
        return jnp.where(i <= j, ordered, ordered.T) + (halves + halves.T)

    whole = part(cotangent)
    if jnp.iscomplexobj(cotangent) and not jnp.iscomplexobj(whole):
        whole = lax.complex(whole, part(-1j * cotangent))
    return whole.astype(cotangent.dtype)


def _no_curvature(k: int, primal: Leaf) -> Any:
    shape = (k, k, *jnp.shape(primal))
    if not is_inexact(primal):
        return np.zeros(shape, jax.dtypes.float0)
    return jnp.zeros(shape, primal.dtype)
