"""Plans: how a quadratic model, a Hessian, or a product with one is computed.

All give the same numbers but for rounding, in different time and memory. (Where a
derivative is infinite, one plan may return NaN where another is finite.)

:func:`forward` carries the second-order coefficients through one forward pass,
:func:`adjoint` computes them with one reverse pass for each element of the output, and
:func:`split` shares a forward pass among devices.

``"auto"``, the default of everything that takes a plan, is chosen while the function is
traced. For a quadratic model it is :func:`adjoint` if the function returns one real
number, there are at least five directions, and the program consists of JAX's own
primitives without ``while`` loops, mutable arrays, callbacks with a result or maps over
devices; otherwise it is :func:`forward`. :func:`fomoh_jax.hessian` and
:func:`fomoh_jax.curvature.hvp` say what it is for them. Optimisers take a forward pass
unless told otherwise, and so do directions that are deferred, since a reverse pass
keeps the tangents of every layer.
"""

from fomoh_jax._hyperdual.plans.adjoint import adjoint
from fomoh_jax._hyperdual.plans.forward import forward
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._hyperdual.plans.split import split

__all__ = ["Plan", "adjoint", "forward", "split"]
