"""Second-order forward-mode differentiation for JAX, and optimisers built on it."""

import jax as _jax

from fomoh_jax.compat import require_sound_jax as _require_sound_jax

_require_sound_jax(_jax.__version__)

from fomoh_jax.hyperdual import (  # noqa: E402
    QuadraticModel,
    directional_curvature,
    hessian,
    hyper_jvp,
    quadratic_model,
)
