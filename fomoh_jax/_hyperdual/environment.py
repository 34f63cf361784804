"""The environment of a program that is being evaluated: a number for each variable."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeGuard

from jax.core import Atom
from jax.extend.core import JaxprEqn, Literal, Var
from jaxtyping import Array

from fomoh_jax._hyperdual.number import HyperDual


class Environment:
    """The numbers of a program's variables, for as long as anything is to read them.

    Without that an eager evaluation would keep every intermediate of the program.

    Args:
      equations: the equations that will read them, each once.
      results: what is read at the end.
    """

    def __init__(self, equations: Sequence[JaxprEqn], results: Sequence[Atom]):
        atoms = [atom for eqn in equations for atom in eqn.invars] + list(results)
        self._reads = Counter(filter(is_variable, atoms))
        self._numbers: dict[Var, HyperDual] = {}
        self._latest: Array | None = None

    def write(self, variables: Sequence[Var], numbers: Sequence[HyperDual]) -> None:
        """Keep the numbers of those variables that will be read."""
        for variable, number in zip(variables, numbers, strict=True):
            if self._reads[variable]:
                self._numbers[variable] = number
        # Seconds are known after tangents, and these after the primals, all of which
        # could be computed before any tangent is.
        channels = [n.seconds for n in numbers] + [n.tangents for n in numbers]
        computed = (c.computed for c in channels if c.computed is not None)
        self._latest = next(computed, self._latest)

    def read(self, atoms: Sequence[Atom]) -> list[HyperDual]:
        """The numbers of some variables and literals.

        Where channels are yet to be made, they wait for what was computed last.
        """
        numbers = {}
        for atom in filter(is_variable, atoms):
            self._reads[atom] -= 1
            last = not self._reads[atom]
            number = self._numbers.pop(atom) if last else self._numbers[atom]
            numbers[atom] = number.not_before(self._latest)
        return [
            HyperDual(atom.val) if isinstance(atom, Literal) else numbers[atom]
            for atom in atoms
        ]


def is_variable(atom: Atom) -> TypeGuard[Var]:
    """Whether an atom of a jaxpr is a variable and no literal."""
    return not isinstance(atom, Literal)
