"""Loops whose body may close over what differs from device to device."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from fomoh_jax.hyperdual.varying import in_shard_map, varies_along, varying_alike


def while_loop(unfinished: Callable, iterate: Callable, start: Any) -> Any:
    """``lax.while_loop``; inside a ``jax.shard_map`` the start varies as what follows.

    (JAX asks for a carry of one type, and the type says along which axes it varies.)
    """
    if in_shard_map():
        start = varying_alike(start, varies_along(jax.eval_shape(iterate, start)))
    return lax.while_loop(unfinished, iterate, start)
