"""Descriptions of operations, by which channels find better ways through them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from fomoh_jax._types import Leaf

T = TypeVar("T")

Indices = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear function of one array, and faster ways for some arrays.

    Attributes:
      function: of an array.
      columns: ``columns(index)``, what the function makes of arrays that are 1 at one
        place and 0 elsewhere, stacked along a leading axis; ``index`` are their places
        if the array were flat.
      over: the dimension of the array that the function sums over, if it is the only
        one, and the function is the same of all that is left; ``None`` otherwise.
      of_slice: ``of_slice(start, size)``, a part of the sum over that dimension, as a
        function of so many elements of it.
      shape: of the result.
      goes: for each dimension of the array, which one of the result it becomes, or
        ``None`` if it is summed over: an element of the result depends on no other
        elements than those. ``None`` altogether if that is not known.
      terms: ``terms(x, dims)``, for some of the dimensions that are summed over: the
        results before the sum over these, which are the leading dimensions.
    """

    function: Callable[[Array], Array]
    columns: Callable[[Indices], Array] | None = None
    over: int | None = None
    of_slice: Callable[[int, int], "Linear"] | None = None
    shape: tuple[int, ...] = ()
    goes: Sequence[int | None] | None = None
    terms: Callable[[Array, Sequence[int]], Array] | None = None

    def __call__(self, x: Array) -> Array:
        return self.function(x)


@dataclasses.dataclass(frozen=True)
class Joint:
    """A jointly linear operation on several arrays, and what it is.

    Attributes:
      function: takes an array for each operand that can vary, and returns a list of
        arrays.
      name: of the primitive; of the linear map that its derivative is, "linearized"
        and the name.
      params: of the equation.
      operands: all of them, as the primals have them.
      places: of those that can vary, among the operands.
    """

    function: Callable[..., list[Array]]
    name: str
    params: dict[str, Any]
    operands: Sequence[Leaf]
    places: Sequence[int]

    def __call__(self, *xs: Array) -> list[Array]:
        return self.function(*xs)


@dataclasses.dataclass(frozen=True)
class Alone:
    """A joint linear function as one of the operand at a place; the others are zero."""

    joint: Joint
    place: int

    def __call__(self, x: Array) -> list[Array]:
        return self.joint(*self.operands(x, lambda other: lax.full_like(other, 0)))

    @property
    def is_known(self) -> bool:
        """Whether the operands that do not vary are known while tracing."""
        joint = self.joint
        fixed = [x for i, x in enumerate(joint.operands) if i not in joint.places]
        return not any(isinstance(x, Tracer) for x in fixed)

    def operands(self, x: T, zero: Callable[[Leaf], T]) -> list[T]:
        """``x`` among zeros, each made of an operand that can vary."""
        joint = self.joint
        return [x if i == self.place else zero(joint.operands[i]) for i in joint.places]


@runtime_checkable
class Product(Protocol):
    """A bilinear function of two arrays.

    Attributes:
      linears: it as a function of the first operand, and of the second one.
    """

    @property
    def linears(self) -> "tuple[Linear, Linear] | None": ...

    def __call__(self, x: Array, y: Array) -> Array: ...

    def pairwise(self, x: Array, y: Array) -> Array:
        """``B(x_q, y_q)`` of two stacks, all stacked along leading axes."""
        ...


@runtime_checkable
class Numbered(Protocol):
    """Second-order coefficients that are numbered.

    Attributes:
      q: how many there are.
    """

    @property
    def q(self) -> int: ...

    def number(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The number of the coefficient of the directions ``i <= j``."""
        ...
