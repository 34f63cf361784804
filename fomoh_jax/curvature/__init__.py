"""Curvature from few directions: estimates of the Hessian, and products with it.

Estimates are transformations, as :func:`fomoh_jax.hessian` is: ``hutchinson_trace(fun,
argnums, probes=n)(key, *args)``. Products and solvers take ``fun`` and ``primals`` as
``jax.jvp`` does, and vary all real floating-point numbers among these, ``D`` of them,
in the order of ``jax.flatten_util.ravel_pytree``; data is best closed over.
"""

from fomoh_jax.curvature._conjugate_gradients import (
    ConjugateGradients,
    conjugate_gradients,
)
from fomoh_jax.curvature._eigenvalues import Eigenpairs, top_eigenvalues
from fomoh_jax.curvature._estimates import Estimate
from fomoh_jax.curvature._hutchinson import hutchinson_diagonal, hutchinson_trace
from fomoh_jax.curvature._newton import newton_step
from fomoh_jax.curvature._products import hvp
from fomoh_jax.curvature._sampled import sampled_diagonal, sampled_hessian
from fomoh_jax.curvature._sampled_trace import sampled_trace

__all__ = [
    "ConjugateGradients",
    "Eigenpairs",
    "Estimate",
    "conjugate_gradients",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "hvp",
    "newton_step",
    "sampled_diagonal",
    "sampled_hessian",
    "sampled_trace",
    "top_eigenvalues",
]
