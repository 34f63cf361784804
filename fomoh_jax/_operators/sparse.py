"""The Hessian of a sum of terms that see few variables each, as a sparse matrix."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import wraps

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import register_static
from jaxtyping import Array, PyTree

from fomoh_jax._argnums import restricted
from fomoh_jax._hyperdual.evaluation import to_jaxpr
from fomoh_jax._hyperdual.inlining import inlined
from fomoh_jax._hyperdual.interpreter import interpret
from fomoh_jax._hyperdual.local import unit_vectors
from fomoh_jax._hyperdual.local_pairs import LocalPairs, added_up
from fomoh_jax._operators.basis import check_outputs
from fomoh_jax._varied import Varied

# The largest number that an index of JAX can be.
_MOST = np.iinfo(np.int32).max


@register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _Pattern:
    """The entries of a square matrix that are stored.

    A static node of a tree, so that a function that is traced can return it.
    """

    rows: np.ndarray
    columns: np.ndarray
    size: int

    @property
    def count(self) -> int:
        return len(self.rows)

    def matrix(self, data: Array) -> BCOO:
        indices = np.stack([self.rows, self.columns], 1).astype(np.int32)
        return BCOO(
            (data, jnp.asarray(indices)),
            shape=(self.size, self.size),
            indices_sorted=True,
            unique_indices=True,
        )


def sparse_hessian(
    fun: Callable, argnums: int | Sequence[int] = 0
) -> Callable[..., BCOO]:
    r"""The Hessian of a scalar function as a sparse matrix, in one forward pass.

    .. math:: H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j}

    Which entries are stored is found while tracing, from the operations of the function
    and not from values: those to which some operation contributes, even if they happen
    to be zero. Where the function is a sum of terms that depend on few elements each,
    time and memory grow with the number of these entries. Slices, reshapes, selections,
    gathers, scatters to places of their own, sums, convolutions, products with few
    terms, and elementwise operations of real numbers keep track of what depends on
    what, if their indices are known while tracing. So do conditions, and scans whose
    steps do not wait for each other: scans that carry nothing, a counter, or a running
    sum. A result of a sort, a maximum or a cumulative sum depends on everything along
    its axis. Results of other loops, scatters, solves and products with large matrices
    count as dependent on every element.

    Under ``jax.jit`` an index that is an argument is not known: close over it, or mark
    it static. Otherwise what it picks counts as dependent on every element. An index
    that NumPy has computed takes the least time to trace.

    Args:
      fun: a function of pytrees of real arrays that returns one scalar, real or
        complex.
      argnums: which positional argument, or arguments, to differentiate.

    Returns:
      A function of the same arguments that returns the Hessian as a
      ``jax.experimental.sparse.BCOO`` of shape ``[D, D]``, where ``D`` is the number of
      elements of the argument, in the order of ``jax.flatten_util.ravel_pytree``. It
      stores both triangles, symmetric to the last bit, with indices sorted and unique.

    Raises:
      TypeError: if a differentiated argument is not of real floating-point numbers, or
        the output is not one floating-point scalar.
      ValueError: if ``argnums`` is out of range, if more entries would be stored than
        a 32-bit index can count, or if intermediate results depend on so much that
        their derivatives would take gigabytes.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import sparse_hessian
      >>> chain = lambda x: jnp.sum((x[1:] - x[:-1]) ** 2)
      >>> hessian = sparse_hessian(chain)(jnp.ones(4))
      >>> print(hessian.nse, "of", hessian.shape)
      10 of (4, 4)
      >>> print(hessian.todense())
      [[ 2. -2.  0.  0.]
       [-2.  4. -2.  0.]
       [ 0. -2.  4. -2.]
       [ 0.  0. -2.  2.]]
    """

    @wraps(fun)
    def sparse_hessian_fun(*args, **kwargs) -> BCOO:
        name = "sparse_hessian"
        function, varied = restricted(name, fun, argnums, args, kwargs)
        size, leaves = varied.size, varied.leaves

        def entries(*leaves):
            numbers, values = _coefficients(name, function, varied, leaves)
            pattern, source = _pattern(name, numbers, size)
            return _taken(values, source), pattern

        # Traced even where nothing else is, so that what is a value is never read.
        jaxpr, (_, pattern) = jax.make_jaxpr(entries, return_shape=True)(*leaves)
        (data,) = jaxpr_as_fun(jaxpr)(*map(jnp.asarray, leaves))
        return pattern.matrix(data)

    return sparse_hessian_fun


def hessian_sparsity(
    fun: Callable, argnums: int | Sequence[int] = 0
) -> Callable[..., BCOO]:
    r"""The entries of a scalar function's Hessian that :func:`sparse_hessian` stores.

    .. math:: P_{ij} = 1 \text{ if some operation contributes to }
        \frac{\partial^2 f}{\partial x_i \partial x_j}

    Nothing is computed: the pattern is found by tracing the function.

    Args:
      fun: a function of pytrees of real arrays that returns one scalar, real or
        complex.
      argnums: which positional argument, or arguments, to differentiate.

    Returns:
      A function of the same arguments that returns a ``jax.experimental.sparse.BCOO``
      of booleans, all of them true, of shape ``[D, D]``, where ``D`` is the number of
      elements of the differentiated argument. Of that, shapes and dtypes are enough
      (``jax.ShapeDtypeStruct``).

    Raises:
      TypeError: if a differentiated argument is not of real floating-point numbers, or
        the output is not one floating-point scalar.
      ValueError: if ``argnums`` is out of range, if more entries would be stored than
        a 32-bit index can count, or if intermediate results depend on too much.

    Example:
      >>> import jax.numpy as jnp
      >>> from fomoh_jax import hessian_sparsity
      >>> chain = lambda x: jnp.sum((x[1:] - x[:-1]) ** 2)
      >>> print(hessian_sparsity(chain)(jnp.ones(4)).astype(int).todense())
      [[1 1 0 0]
       [1 1 1 0]
       [0 1 1 1]
       [0 0 1 1]]
    """

    @wraps(fun)
    def hessian_sparsity_fun(*args, **kwargs) -> BCOO:
        name = "hessian_sparsity"
        function, varied = restricted(name, fun, argnums, args, kwargs)

        def pattern(*leaves):
            numbers, _ = _coefficients(name, function, varied, leaves)
            return _pattern(name, numbers, sum(map(jnp.size, leaves)))[0]

        found = jax.eval_shape(pattern, *varied.leaves)
        return found.matrix(jnp.ones(found.count, bool))

    return hessian_sparsity_fun


def _coefficients(
    name: str, fun: Callable, varied: Varied, leaves: Sequence[Array]
) -> tuple[np.ndarray, Array]:
    """Second-order coefficients, and their numbers in :class:`LocalPairs`."""
    primals = jax.tree.structure(varied.args).unflatten(leaves)
    size = sum(map(jnp.size, leaves))  # varied may hold their shapes alone
    jaxpr, args, structure = to_jaxpr(fun, primals, unit_vectors(leaves), False)
    outputs, _ = structure.unflatten(jaxpr.out_avals)
    _check_scalar(name, outputs)
    form = LocalPairs(size)
    (out,) = interpret(inlined(jaxpr), form, args)
    numbers, values = added_up(out.seconds, form)
    dtype = jnp.result_type(*leaves)
    return numbers, values if jnp.iscomplexobj(values) else values.astype(dtype)


def _pattern(name: str, numbers: np.ndarray, size: int) -> tuple[_Pattern, np.ndarray]:
    """The entries that coefficients are, and which of the coefficients each is."""
    _check_count(name, size, 2 * len(numbers) - int(np.sum(numbers < size)))
    rows, columns, source = LocalPairs(size).entries(numbers)
    return _Pattern(rows, columns, size), source


def _taken(array: Array, places: np.ndarray) -> Array:
    return array.at[places.astype(np.int32)].get(mode="promise_in_bounds")


def _check_scalar(name: str, outputs: PyTree) -> None:
    """Refuse a function that does not return one floating-point number.

    Raises:
      TypeError: saying what it returns.
    """
    leaves = jax.tree.leaves(outputs)
    if jax.tree.structure(outputs) != jax.tree.structure(0) or leaves[0].shape:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", outputs)
        raise TypeError(
            f"{name} needs a function that returns one scalar; fun returns {shapes}. "
            "Sum what it returns, or call the operator once for each output, for "
            "lambda x: fun(x)[i] with a Python integer i; fomoh_jax.hessian takes any "
            "function."
        )
    check_outputs(name, outputs)


def _check_count(name: str, size: int, count: int) -> None:
    """Refuse more entries than an index counts.

    Raises:
      ValueError: saying how many there are.
    """
    if count > _MOST:
        raise ValueError(
            f"{name} stores at most {_MOST} entries; the Hessian of fun in {size} "
            f"variables has {count}. Give fun fewer variables, or take "
            "fomoh_jax.curvature.hvp, which needs no entries."
        )
