"""Plans: how a quadratic model, a Hessian, or a product with one is computed.

All give the same numbers but for rounding, in different time and memory. (Where a
derivative is infinite, one plan may return NaN where another is finite.)

:func:`forward` carries the second-order coefficients through one forward pass,
:func:`adjoint` computes them with one reverse pass for each element of the output, and
:func:`split` shares a forward pass among devices.

``"auto"``, the default of everything that takes a plan, chooses while the function is
traced. It takes a reverse pass only of a function that returns one real number, if the
program is made of JAX's own primitives and has no ``while`` loop, mutable array,
callback with a result or map over devices in it. Such a function gets

- for a quadratic model, :func:`adjoint` along at least five directions, unless these
  are deferred: a reverse pass keeps the tangents of every layer;
- for a Hessian, of any number of variables, the tangents of its gradient along each of
  them, as ``jax.hessian`` computes it; or one forward pass for the entries that
  :func:`fomoh_jax.sparse_hessian` stores, where that is less work. These two serve
  nothing but whole Hessians, and are no plans to choose;
- for a product with the Hessian, :func:`adjoint` of at least five variables, unless the
  function may select or slice values whose derivatives may be infinite.

Everything else gets :func:`forward`. So do optimisers, unless told otherwise.
"""

from fomoh_jax._hyperdual.plans.adjoint import adjoint
from fomoh_jax._hyperdual.plans.forward import forward
from fomoh_jax._hyperdual.plans.plan import Plan
from fomoh_jax._hyperdual.plans.split import split

__all__ = ["Plan", "adjoint", "forward", "split"]
