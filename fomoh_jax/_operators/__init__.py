"""Differential operators: Hessians, Laplacians, and their values and gradients."""

from fomoh_jax._operators.hessians import (  # noqa: F401
    ValueGradientHessian,
    hessian,
    hessian_diagonal,
    value_grad_and_hessian,
)
from fomoh_jax._operators.laplacians import (  # noqa: F401
    ValueGradientLaplacian,
    laplacian,
    value_grad_and_laplacian,
)
from fomoh_jax._operators.sparse import (  # noqa: F401
    hessian_sparsity,
    sparse_hessian,
)
