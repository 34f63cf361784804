"""The curvature of few outputs by one sweep back over what the seconds go through.

Second-order coefficients obey ``y_s = L x_s + source``, where the source is made of
tangents and ``L`` is the derivative of the program itself. So

    v_iᵀ H v_j = Σ over the sources of ⟨λ, source_ij⟩

with the cotangents ``λ`` of an ordinary backward pass: one, whatever ``k``. Nothing of
the size ``k²`` is carried. A source ``φ'' x_i x_j`` is met by ``λ`` in one matrix
product of the tangents with themselves, a bilinear one in ``k`` transposed products.
Beside the ``2k`` products of the tangents that is all, where forward over reverse takes
``6k`` and a forward pass ``k²``. The price is that of reverse mode: the tangents of
every layer are kept until ``λ`` comes, and a ``while`` loop cannot be swept back over.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fomoh_jax.hyperdual.forms import Bilinear, FirstOrder, Form, Pairs
from fomoh_jax.hyperdual.interpreter import interpret
from fomoh_jax.hyperdual.number import (
    ZERO,
    Channel,
    HyperDual,
    Stack,
    Zero,
    add,
    scale,
)
from fomoh_jax.hyperdual.registry import Operation, Rule

# ``contract(λ)`` is ⟨λ, source_ij⟩ for all i and j; of pairs, i <= j is looked at.
Contract = Callable[[jax.Array], jax.Array]

# What is interpreted in place, and what is swept back over as a whole: its inside
# belongs to another trace, which sources could not leave.
_IN_PLACE = {"jit", "checkpoint", "remat2"}
_WHOLE = {"scan", "while", "cond", "shard_map"}


@dataclasses.dataclass(frozen=True)
class Adjoint(Form):
    """One second-order coefficient: the sum of what enters at each source.

    Attributes:
      k: number of directions.
      entries: what enters at the sources, in the order in which they are met, or
        ``None`` to find out what their shapes are.
      sources: filled on the way: what entered, and how a cotangent meets it.
    """

    k: int
    entries: Sequence[jax.Array] | None = None
    sources: list[tuple[jax.Array, Contract]] = dataclasses.field(default_factory=list)

    @property
    def q(self) -> int:
        return 1

    def apply(self, rule: Rule, op: Operation, args: Sequence[HyperDual]):
        name = op.primitive.name
        if name in _IN_PLACE:
            return interpret(op.params["jaxpr"], self, args)
        if name in _WHOLE:
            return self._whole(rule, op, args)
        if name == "new_ref":
            raise NotImplementedError(
                "adjoint=True cannot sweep back over a mutable array (jax.new_ref); "
                "leave it out for a forward pass."
            )
        return rule(self, op, args)

    def cross(self, a: Channel, b: Channel) -> Channel:
        if isinstance(a, Zero) or isinstance(b, Zero):
            return ZERO
        if a is b:
            return scale(2, self.product(a, a))
        a, b = a.moved(0), b.moved(0)

        def contract(cotangent: jax.Array) -> jax.Array:
            one = self._table(a, b, _gram(cotangent * a.array, b.array))
            return one + one.T

        return self._enter(a.array[0] * b.array[0], contract)

    def _product(self, a: Stack, b: Stack) -> Channel:
        a, b = a.moved(0), b.moved(0)
        gram = lambda cotangent: _gram(cotangent * a.array, b.array)
        return self._enter(
            a.array[0] * b.array[0],
            lambda cotangent: self._table(a, b, gram(cotangent)),
        )

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

            one = self._table(a, b, _gram(jax.vmap(pulled)(a.array), b.array))
            return one + one.T

        return self._enter(product(a.array[0], b.array[0]), contract)

    def _quadratic(self, function, xs, zeros, out_axes) -> list[Channel]:
        xs = [x.moved(0) if isinstance(x, Stack) else x for x in xs]
        dense = Pairs(self.k).quadratic(function, xs, zeros, [0] * len(out_axes))
        return [self._enter_pairs(source) for source in dense]

    def _enter(self, like: jax.Array, contract: Contract) -> Channel:
        """A source: one array like ``like``, which says nothing but shape and dtype."""
        if self.entries is None:
            entry = jnp.zeros_like(like)
        else:
            entry = self.entries[len(self.sources)]
        self.sources.append((entry, contract))
        return Stack(lax.expand_dims(entry, (0,)))

    def _enter_pairs(self, source: Channel) -> Channel:
        """A source of which all the pairs are at hand."""
        if isinstance(source, Zero):
            return ZERO
        array = source.padded(None, Pairs(self.k).q).moved(0).array
        i, j = Pairs(self.k).pairs

        def contract(cotangent: jax.Array) -> jax.Array:
            along = _gram(array, cotangent[None])[:, 0]
            return jnp.zeros((self.k, self.k), along.dtype).at[i, j].set(along)

        return self._enter(array[0], contract)

    def _whole(
        self, rule: Rule, op: Operation, args: Sequence[HyperDual]
    ) -> list[HyperDual]:
        """A loop or a branch as one source, with all its pairs, and one linear map."""
        flat = [HyperDual(arg.primal, arg.tangents) for arg in args]
        outs = rule(Pairs(self.k), op, flat)
        seconds: list[Channel] = [ZERO] * len(outs)
        if any(isinstance(arg.seconds, Stack) for arg in args):
            moved = [HyperDual(arg.primal, arg.seconds) for arg in args]
            pushed = rule(FirstOrder(1), op, moved)
            seconds = [number.tangents for number in pushed]
        return [
            HyperDual(out.primal, out.tangents, add(s, self._enter_pairs(out.seconds)))
            for out, s in zip(outs, seconds)
        ]

    def _table(self, a: Stack, b: Stack, block: jax.Array) -> jax.Array:
        """``[k, k]`` from what is between the directions that are present."""
        if a.present is None and b.present is None:
            return block
        places = np.ix_(a.indices, b.indices)
        return jnp.zeros((self.k, self.k), block.dtype).at[places].set(block)


def _gram(a: jax.Array, b: jax.Array) -> jax.Array:
    """``⟨a_i, b_j⟩`` of two stacks along leading axes."""
    places = tuple(range(1, a.ndim))
    return lax.dot_general(
        a, b, ((places, places), ((), ())), precision=lax.Precision.HIGHEST
    )


def curvatures(
    jaxpr: Any, k: int, args: Sequence[HyperDual]
) -> tuple[list[HyperDual], list[jax.Array | None]]:
    """A jaxpr at numbers of order one, and ``v_iᵀ H v_j`` of each of its outputs.

    Args:
      jaxpr: closed, as ``jax.make_jaxpr`` returns it.
      k: number of directions.
      args: its arguments, with tangents.

    Returns:
      The outputs with their tangents, and ``[k, k, *out]`` for each, symmetric to the
      last bit; ``None`` where there is none.
    """

    def shapes(args):
        form = Adjoint(k)
        interpret(jaxpr, form, args)
        return [entry for entry, _ in form.sources]

    entries = [jnp.zeros(s.shape, s.dtype) for s in jax.eval_shape(shapes, list(args))]
    outs: list[HyperDual] = []
    contracts: list[Contract] = []

    def seconds(entries):
        form = Adjoint(k, entries)
        outs.extend(interpret(jaxpr, form, args))
        contracts.extend(contract for _, contract in form.sources)
        return [
            out.seconds.moved(0).array[0] if isinstance(out.seconds, Stack) else None
            for out in outs
        ]

    values, pull = jax.vjp(seconds, entries)
    flat = [HyperDual(out.primal, out.tangents) for out in outs]

    def of_element(cotangents: list[jax.Array | None]) -> jax.Array:
        (met,) = pull(cotangents)
        total = sum(contract(m) for contract, m in zip(contracts, met))
        i, j = np.indices((k, k))
        return jnp.where(i <= j, total, jnp.swapaxes(total, 0, 1))

    return flat, [
        None if value is None else _each_element(of_element, values, place)
        for place, value in enumerate(values)
    ]


def _each_element(of_element: Callable, values: Sequence[Any], place: int) -> jax.Array:
    """``of_element`` for a cotangent of one at each element of one of the values."""
    value = values[place]
    basis = jnp.eye(value.size, dtype=value.dtype).reshape(-1, *value.shape)

    def curvature(cotangent):
        zeros = [None if v is None else jnp.zeros_like(v) for v in values]
        return of_element([*zeros[:place], cotangent, *zeros[place + 1 :]])

    if value.size == 1:  # without a vmap of everything over one element
        table = curvature(basis[0])[..., None]
    else:
        table = jax.vmap(curvature, out_axes=-1)(basis)
    return table.reshape(*table.shape[:2], *value.shape)
