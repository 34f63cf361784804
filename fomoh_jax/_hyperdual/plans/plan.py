"""The base class of plans."""

import abc
from collections.abc import Callable, Sequence

import jax
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, PyTree

from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._types import Leaf


class Plan(abc.ABC):
    """A way to compute the curvature of a function.

    All plans give the same numbers but for rounding, wherever derivatives are finite.
    They differ in time, in memory, and in the functions that they can take.
    """

    @abc.abstractmethod
    def curvatures(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        """Evaluates a program on tangents, with ``v_iᵀ H v_j`` of its first outputs.

        Args:
          jaxpr: closed, as ``jax.make_jaxpr`` returns it.
          k: number of directions, at least 1.
          args: its arguments, with tangents.
          wanted: how many outputs, from the first on, to compute the curvature of.

        Returns:
          All the outputs with their tangents, and ``[k, k, *out]`` for each of those
          wanted, symmetric to the last bit, of ``float0`` where the output is of
          integers.
        """

    def hessians(
        self, jaxpr: ClosedJaxpr, k: int, args: Sequence[HyperDual], wanted: int
    ) -> tuple[list[HyperDual], list[Leaf]]:
        """Like :meth:`curvatures`, where the directions are the standard basis.

        The basis is that of all the arguments together, so the result is the Hessian,
        for which there may be a better way; it need not be symmetric to the last bit.
        """
        return self.curvatures(jaxpr, k, args, wanted)

    @abc.abstractmethod
    def products(
        self,
        columns: Callable,
        slopes: Callable,
        primals: PyTree,
        point: Float[Array, " D"],
    ) -> jax.Array:
        """The Hessian of a scalar function times each of ``m`` vectors, ``[m, D]``.

        Args:
          columns: ``columns(primals, basis)``, by a forward pass: ``[m, w]``, what the
            products are along ``w`` vectors ``[w, D]`` of the standard basis.
          slopes: ``slopes(point)``, the derivatives along the ``m`` vectors, ``[m]``.
          primals: what ``columns`` takes.
          point: ``[D]``, what varies of the primals.
        """

    def placed(self, model: Callable, k: int) -> Callable:
        """``model(primals, directions)`` on the devices that the plan takes."""
        del k
        return model

    def check_closure(self) -> None:
        """Raise if a function must not close over what is traced."""
        return None
