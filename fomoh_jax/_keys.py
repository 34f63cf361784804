"""The PRNG keys of optimisers: the first one of a state, and those of its steps."""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from fomoh_jax._hyperdual.arguments import check_key


def key_source(key: ArrayLike | None) -> Callable[[PyTree], chex.PRNGKey]:
    """A function of the parameters that makes the first key of a state."""
    return _OwnKey() if key is None else lambda params: _as_key(key)


class _OwnKey:
    """The first key of an optimiser that was given none: that of seed 0, if it can be.

    Two links of a chain know nothing of each other, and with one key for both they
    would look along the same directions. What tells them apart is that one link is
    initialised on the very parameters on which others were initialised after it was
    made. It is then numbered by how many those were, once and for all. An optimiser
    that is made and initialised again has the same key again.
    """

    clock: ClassVar[Iterator[int]] = itertools.count()
    # A leaf of each of the last parameters, and when links were initialised on them.
    recent: ClassVar[deque[tuple[Callable[[], object], list[int]]]] = deque(maxlen=8)

    def __init__(self):
        self.made = next(self.clock)
        self.number: int | None = None

    def __call__(self, params: PyTree) -> chex.PRNGKey:
        if self.number is None:
            self.number = self._others(next(iter(jax.tree.leaves(params)), None))
        first = jax.random.key(0)
        return jax.random.fold_in(first, self.number) if self.number else first

    def _others(self, leaf: object) -> int:
        """The number of links initialised on these parameters since this was made."""
        times = next((times for known, times in self.recent if known() is leaf), None)
        if times is None:
            times = []
            self.recent.append((_weakly(leaf), times))
        others = sum(time > self.made for time in times)
        times.append(next(self.clock))
        return others


def _weakly(leaf: object) -> Callable[[], object]:
    """A reference that does not keep an array or a tracer alive."""
    try:
        return weakref.ref(leaf)
    except TypeError:  # a number, which is small
        return lambda: leaf


def split(key: chex.PRNGKey | None) -> tuple[chex.PRNGKey | None, chex.PRNGKey | None]:
    """The key of the steps that follow, and that of this one."""
    if key is None:
        return None, None
    following, this = jax.random.split(key)
    return following, this


def _as_key(key: ArrayLike) -> chex.PRNGKey:
    """A copy of a typed or a legacy key, or the typed key of a seed.

    A copy, because a training loop may donate the state, and with it the user's key.
    """
    if isinstance(key, (jax.Array, np.ndarray)) and jnp.ndim(key) == 1:
        check_key(key)  # a legacy key
        expected = jax.random.key_data(jax.random.key(0)).shape
        if key.shape != expected:
            raise TypeError(
                "a legacy key of the default generator has shape "
                f"{list(expected)}; got {list(key.shape)}. For another generator write "
                "jax.random.key(seed, impl=...)."
            )
        return jax.random.clone(jnp.asarray(key))
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        check_key(key)
        return jax.random.clone(key)
    return jax.random.key(key)
