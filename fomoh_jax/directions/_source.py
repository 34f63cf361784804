"""Sources of directions, and how two of them make one."""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array, PRNGKeyArray, PyTree

from fomoh_jax._hyperdual.channels import (
    Channel,
    LeafDirections,
    as_channel,
    is_channel,
)
from fomoh_jax._hyperdual.mesh_axes import concatenated
from fomoh_jax._refusals import wrong_kind


@dataclasses.dataclass(frozen=True)
class Directions:
    """A source of directions.

    Attributes:
      size: how many directions it makes: an integer, or a function of ``params`` that
        returns one, where that depends on them.
      sample: ``sample(key, params, updates)``, a tree like ``params`` of leaves
        ``[k, *leaf.shape]`` in the leaf's dtype, :class:`fomoh_jax.Stack`,
        :class:`fomoh_jax.Deferred` or :class:`fomoh_jax.LowRank`.
        ``updates`` are those of the chain, or ``None``. A source that remembers is
        given its state as a fourth argument.
      init: ``init(params)``, the state of a source that remembers; ``()`` by default.
      advance: ``advance(state, params)``, the state that has seen these parameters,
        before directions are made at them.
      of_leaf: ``of_leaf(shape, dtype)``, a function of a key that makes the directions
        ``[k, *shape]`` of one leaf, if they depend on nothing else; ``None``
        otherwise. The same function for the same leaf, each time.
      is_random: whether it takes a key. One that takes none is given ``None``.
    """

    size: int | Callable[[PyTree], int]
    sample: Callable[..., PyTree[LeafDirections]]
    init: Callable[[PyTree], PyTree] = lambda params: ()
    advance: Callable[[PyTree, PyTree], PyTree] = lambda state, params: state
    of_leaf: Callable[..., Callable[[PRNGKeyArray], Array]] | None = None
    is_random: bool = True

    def count(self, params: PyTree) -> int:
        """The number of directions that it makes for these parameters."""
        return self.size(params) if callable(self.size) else self.size

    @property
    def k(self) -> int:
        """The number of directions that it makes, whatever the parameters.

        Raises:
          ValueError: if that depends on them.
        """
        if callable(self.size):
            raise ValueError(
                "how many directions this source makes depends on the parameters; ask "
                "for count(params)."
            )
        return self.size

    def draw(
        self, key: PRNGKeyArray | None, params: PyTree, updates: PyTree, state: PyTree
    ) -> PyTree[LeafDirections]:
        """The directions, of a source that remembers or of one that does not."""
        if isinstance(state, tuple) and not state:
            return self.sample(key, params, updates)
        return self.sample(key, params, updates, state)

    def __add__(self, other: object) -> "Directions":
        """The directions of both, those of the left operand first."""
        if not isinstance(other, Directions):
            return NotImplemented

        def sample(key, params, updates, state=()):
            left, right = (None, None) if key is None else jax.random.split(key)
            of_left, of_right = state or ((), ())
            return jax.tree.map(
                _joined,
                self.draw(left, params, updates, of_left),
                other.draw(right, params, updates, of_right),
                is_leaf=is_channel,
            )

        def init(params):
            return self.init(params), other.init(params)

        def advance(state, params):
            left, right = state
            return self.advance(left, params), other.advance(right, params)

        size = lambda params: self.count(params) + other.count(params)
        if not (callable(self.size) or callable(other.size)):
            size = self.size + other.size
        is_random = self.is_random or other.is_random
        return Directions(size, sample, init, advance, is_random=is_random)


def check_base(base: object) -> None:
    """Refuse what no other source can be made of.

    Raises:
      TypeError: if it is no source of directions.
    """
    if not isinstance(base, Directions):
        raise wrong_kind("base", "a source of directions", base)


def _joined(a: LeafDirections, b: LeafDirections) -> LeafDirections:
    """Two leaves of directions as one."""
    if isinstance(a, Channel) or isinstance(b, Channel):
        return as_channel(a).followed_by(as_channel(b))
    return concatenated(a, b)
