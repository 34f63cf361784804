"""Second-order forward-mode differentiation for JAX, and optimisers built on it."""

import jax as _jax

from fomoh_jax._compat import require_sound_jax as _require_sound_jax

_require_sound_jax(_jax.__version__)

# _xla comes first: it sets a flag that XLA reads when a backend starts.
from fomoh_jax import (  # noqa: E402
    _serialisation,  # noqa: F401
    _xla,  # noqa: F401
    curvature,
    directions,
    hyperdual,
    plans,
    solvers,
)
from fomoh_jax._activations import (  # noqa: E402
    blocks_of,
    cut,
    forward_value_and_grad,
)
from fomoh_jax._aliases import fgd, fomoh, fomoh_bp, fomoh_kd  # noqa: E402
from fomoh_jax._fomoh_ap import EffortState, fomoh_ap  # noqa: E402
from fomoh_jax._hyperdual import (  # noqa: E402
    Deferred,
    DirectionalCurvature,
    LowRank,
    QuadraticModel,
    Stack,
    directional_curvature,
    gauss_newton_model,
    hyper_jvp,
    quadratic_model,
    register_rule,
)
from fomoh_jax._operators import (  # noqa: E402
    ValueGradientHessian,
    ValueGradientLaplacian,
    hessian,
    hessian_diagonal,
    hessian_sparsity,
    laplacian,
    sparse_hessian,
    value_grad_and_hessian,
    value_grad_and_laplacian,
)
from fomoh_jax._transforms import (  # noqa: E402
    ScaleByActivityGradientState,
    ScaleByForwardGradientState,
    ScaleByHyperplaneState,
    scale_by_activity_gradient,
    scale_by_forward_gradient,
    scale_by_hyperplane,
)

__version__ = "0.1.0"

__all__ = [
    "Deferred",
    "DirectionalCurvature",
    "EffortState",
    "LowRank",
    "QuadraticModel",
    "ScaleByActivityGradientState",
    "ScaleByForwardGradientState",
    "ScaleByHyperplaneState",
    "Stack",
    "ValueGradientHessian",
    "ValueGradientLaplacian",
    "blocks_of",
    "curvature",
    "cut",
    "directional_curvature",
    "directions",
    "fgd",
    "fomoh",
    "fomoh_ap",
    "fomoh_bp",
    "fomoh_kd",
    "forward_value_and_grad",
    "gauss_newton_model",
    "hessian",
    "hessian_diagonal",
    "hessian_sparsity",
    "hyper_jvp",
    "hyperdual",
    "laplacian",
    "plans",
    "quadratic_model",
    "register_rule",
    "scale_by_activity_gradient",
    "scale_by_forward_gradient",
    "scale_by_hyperplane",
    "solvers",
    "sparse_hessian",
    "value_grad_and_hessian",
    "value_grad_and_laplacian",
]
