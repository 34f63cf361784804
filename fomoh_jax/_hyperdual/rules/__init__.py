"""One rule for each family of primitives. Importing the package fills the table."""

from fomoh_jax._hyperdual.rules import (  # noqa: F401
    bilinear,
    calls,
    constant,
    control_flow,
    custom_jvp,
    decomposed,
    dot_general,
    elementwise,
    generic,
    implicit,
    linear,
    mutable,
    selection,
    shard_map,
)
