"""Forward gradients by perturbed activations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Shaped

from fomoh_jax._activations.causality import LossByPosition, find_positions
from fomoh_jax._activations.convolutions import CONVOLUTION, with_axes_in_order
from fomoh_jax._activations.first_pass import perturbed_values
from fomoh_jax._activations.graph import type_of
from fomoh_jax._activations.partition import Blocks, Partition, partition
from fomoh_jax._activations.program import flattened
from fomoh_jax._activations.second_pass import Slopes, differentiate_blocks, is_of_all
from fomoh_jax._compat import primitives_of
from fomoh_jax._hyperdual import directional_derivatives
from fomoh_jax._hyperdual.arguments import (
    check_array,
    check_devices,
    check_key,
    check_size,
)
from fomoh_jax._hyperdual.delay import after
from fomoh_jax._hyperdual.jaxprs import read
from fomoh_jax._hyperdual.mesh_axes import in_shard_map, varying_alike
from fomoh_jax._refusals import check_real_scalar
from fomoh_jax._types import Leaf, PyTreeDef
from fomoh_jax._xla import warn_if_unsound

_MUTABLE = {"new_ref", "ref", "get", "swap", "addupdate", "freeze"}
# The number of groups, or a few more, whose spread gives the noise.
_GROUPS = 8


def forward_value_and_grad(
    loss_of_one: Callable,
    *,
    blocks: Blocks = None,
    probes: int = 1,
    has_aux: bool = False,
    return_noise: bool = False,
) -> Callable:
    r"""Value and an unbiased estimate of the gradient, without a backward pass.

    The model is cut into blocks :math:`h_l = f_l(\theta_l, h_{l-1})`. One forward-mode
    pass, with random signs :math:`u_{l,b}` added to every cut of every example
    :math:`b`, gives one number for each example,
    :math:`d_b = \sum_l \langle \partial \ell_b / \partial h_l, u_{l,b} \rangle`. A
    second forward pass turns it into

    .. math:: g_{\theta_l} = \frac1B \sum_b
      \Big(\frac{\partial f_l}{\partial \theta_l}\Big)^{\!\top} d_b\, u_{l,b},
      \qquad E[g] = \nabla_\theta \frac1B \sum_b \ell_b,

    by the transpose of each block alone, whose residuals are freed before the next
    begins: the memory is that of one block, whatever their number. The gradient of the
    last block is exact. The variance, relative to the square of the gradient, is
    proportional to the number of perturbed values divided by (examples × probes); see
    :func:`fomoh_jax.blocks_of`.

    If the loss is a sum over positions of a sequence,
    :math:`\ell_b = \sum_s \ell_{b,s}`, and the program between a cut and that sum is
    causal, a perturbation at position :math:`t` counts only the losses that it can
    reach. The others have mean zero, and would be noise alone:

    .. math:: d_{b,t} = \sum_{s \ge t} \sum_l
      \Big\langle \frac{\partial \ell_{b,s}}{\partial h_l}, u_{l,b} \Big\rangle.

    That is read from the program, for each cut: attention behind a constant triangular
    mask of -5e8 or less (such as ``jnp.tril`` makes, or
    ``flax.linen.make_causal_mask``), ``scan`` over layers, and ``scan`` over time with
    a loss of each step. It assumes that scores are much smaller than the mask. Masks
    that depend on the example or have over 2²⁵ elements, and losses that mix positions,
    are not taken for causal.

    A ``custom_vjp`` has its own rule inside a block. Blocks before it see the
    derivative of its function, so that a rule that is not that derivative, such as a
    straight-through estimator, biases theirs.

    Args:
      loss_of_one: ``loss_of_one(params, example)``, the loss of one example, a real
        scalar; with ``has_aux`` a pair of that and anything. It must not exchange
        anything between examples, as batch normalisation in training does.
      blocks: how many blocks at most; no more than the program has. ``None`` takes all
        that it has; 1 is backpropagation. In between, the cuts are those whose largest
        block needs the least memory, and among these those with the least noise.
        ``"marked"`` cuts where the model calls :func:`fomoh_jax.cut`, and nowhere else.
      probes: number of perturbations of each example; their estimates are averaged.
        They share the evaluation of the model itself.
      has_aux: whether ``loss_of_one`` returns ``(loss, aux)``.
      return_noise: whether to return the noise as well.

    Returns:
      A function ``(params, batch, key)`` of real floating-point parameters, of a batch
      whose leaves lead with the examples, ``[B, ...]``, and of a PRNG key (not the one
      from which keys in the batch were split). It returns
      ``(value, gradient)``: the mean loss, and a tree like ``params``. With ``has_aux``
      the value is ``(value, aux)``, with the aux of all examples stacked, ``[B, ...]``.
      With ``return_noise`` there is a third result: for each block, in the order of
      :func:`fomoh_jax.blocks_of`, the squared standard error of its part of the
      gradient. It is a scalar; for a block in a loop it is ``[length]``, for the
      gradient by what the loop takes, which may be computed from the parameters. It is
      estimated from the spread between about eight groups of examples, and includes the
      variance between examples. Choose a multiple of 8 as the number of examples: a
      prime number makes each example a group, which stores a gradient for each.

      If any loss, slope or element of the gradient is not finite, the gradient is zero.

    Raises:
      ValueError: if ``blocks`` or ``probes`` is less than 1, or ``blocks`` is another
        string; from the function, if there are no parameters, if the program has fewer
        blocks, if the leaves of the batch disagree, if nothing is marked, if the loss
        exchanges something between examples or uses mutable arrays, or, with
        ``return_noise``, for a batch of one example.
      TypeError: if ``blocks`` or ``probes`` is no Python integer; from the function, if
        the loss is no real scalar, if a parameter is no real floating-point array, or
        if ``key`` is no PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fomoh_jax
      >>> def loss_of_one(params, example):
      ...   x, y = example
      ...   for w in params[:-1]:
      ...     x = jnp.tanh(x @ w)
      ...   return jnp.sum((x @ params[-1] - y) ** 2)
      >>> params = [0.1 * jnp.ones((4, 4)), jnp.ones((4, 1))]
      >>> batch = jnp.ones((8, 4)), jnp.zeros((8, 1))
      >>> grad = fomoh_jax.forward_value_and_grad(loss_of_one, probes=4)
      >>> value, gradient = grad(params, batch, jax.random.key(0))
      >>> print(f"{value:.2f}", jax.tree.map(jnp.shape, gradient))
      2.31 [(4, 4), (4, 1)]

    References:
      Ren et al., *Scaling Forward Gradient With Local Losses*, 2023, arXiv:2210.03310.
    """
    check_blocks(blocks)
    probes = check_size("probes", probes)

    def value_and_grad(params: PyTree, batch: PyTree, key: PRNGKeyArray) -> Any:
        warn_if_unsound()
        check_key(key)
        check_devices({"params": params, "batch": batch})
        params = jax.tree.map(jnp.asarray, read_params(params))
        batch, examples = read_batch(batch)
        # Inside a shard_map, the gradient is that of each device's own examples.
        params, batch, key = varying_alike((params, batch, key))
        example = jax.tree.map(of_one, batch)
        program = read_program(loss_of_one, params, example, has_aux, blocks)
        args = [*jax.tree.leaves(params), *jax.tree.leaves(batch)]
        keys = _keys(key, _numbers(batch, examples), probes)
        if program.partition.is_exact:  # then the second pass is all that there is
            outs, slope = None, jnp.zeros(keys.shape[:2])
        else:
            slope, *outs = _first_pass(program, args, keys)
            args = _held_back(jax.tree.leaves(params), jax.tree.leaves(batch), slope)
        slopes = _slopes(program, keys, slope, 1 / examples)
        groups = _groups(examples) if return_noise else 1
        results, gradients, noise = _second_pass(program, args, slopes, groups)
        losses, *rest = _of_each(program, results, keys) if outs is None else outs
        value = jnp.mean(losses)
        of_params = [part for part in gradients if part is not None]
        gradient = jax.tree.unflatten(
            jax.tree.structure(params),
            _zero_unless_finite(of_params, [value, slope]),
        )
        if has_aux:
            value = value, program.aux.unflatten(rest)
        return (value, gradient, noise) if return_noise else (value, gradient)

    return value_and_grad


class ProgramOfOne(NamedTuple):
    """The loss of one example, flat, and its blocks.

    Attributes:
      partition: the first inputs are the parameters.
      learned: which inputs are.
      aux: the structure of what the loss returns beside its value.
      by_position: how the loss is a sum over positions, if that is of use.
    """

    partition: Partition
    learned: list[bool]
    aux: PyTreeDef
    by_position: LossByPosition | None


def read_program(
    loss_of_one: Callable,
    params: PyTree,
    example: PyTree,
    has_aux: bool,
    blocks: Blocks,
) -> ProgramOfOne:
    """The loss as a program, cut into blocks.

    Raises:
      ValueError, TypeError: as :func:`forward_value_and_grad`.
    """

    def pair(params, example):
        out = loss_of_one(params, example)
        if not has_aux:
            hint = " If it returns (loss, aux), set has_aux=True."
            return _checked_loss(out, hint), ()
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                "with has_aux=True, loss_of_one must return a pair (loss, aux); got "
                f"{jax.tree.structure(out)}."
            )
        return _checked_loss(out[0]), out[1]

    try:
        closed, shapes = flattened(pair, params, example)
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise ValueError(
            "loss_of_one must be the loss of one example alone, without collectives "
            f"over examples; got: {error}. Batch normalisation in training has them; "
            "normalise by running statistics, or over the features of an example."
        ) from error
    if not _MUTABLE.isdisjoint(primitives_of(closed)):
        raise ValueError(
            "loss_of_one must not use mutable arrays (jax.new_ref), whose derivatives "
            "cannot be cut into blocks; use values, or jax.lax.scan with a carry."
        )
    inputs, learned = range(len(closed.jaxpr.invars)), len(jax.tree.leaves(params))
    is_learned = [i < learned for i in inputs]
    cut = partition(closed, is_learned, is_learned, blocks)
    cut, by_position = find_positions(cut)
    aux = jax.tree.structure(shapes[1])
    return ProgramOfOne(cut, is_learned, aux, by_position)


def _first_pass(
    program: ProgramOfOne,
    args: list[Leaf],
    keys: Shaped[Array, "examples probes *data"],
) -> list[Leaf]:
    """The derivative of each example's loss along each probe, the loss, and the aux.

    The derivative is ``[examples, probes]``, or of each position, ``[..., positions]``.
    """
    jaxpr = program.partition.jaxpr
    zero = jnp.zeros((), type_of(jaxpr.outvars[0]).dtype)
    # JAX's forward mode refuses a custom_vjp, which ours sees through.
    sees_through = "custom_vjp_call" in primitives_of(jaxpr)

    def of_probe(args, key):
        def loss(scale):
            values = perturbed_values(program.partition, args, key, scale)
            first, *rest = read(values, jaxpr.outvars)
            if program.by_position is None:
                return first, (first, rest)
            return program.by_position(jaxpr, values), (first, rest)

        if sees_through:
            (_, slopes), (value, rest) = directional_derivatives(
                loss, (zero,), (jnp.ones_like(zero)[None],), has_aux=True
            )
            return slopes[0], value, rest
        _, slope, (value, rest) = jax.jvp(
            loss, (zero,), (jnp.ones_like(zero),), has_aux=True
        )
        return slope, value, rest

    def of_example(keys, *args):
        outs = (0, None, None)
        return jax.vmap(lambda key: of_probe(args, key), out_axes=outs)(keys)

    axes = [None if learned else 0 for learned in program.learned]
    slope, losses, rest = jax.vmap(of_example, (0, *axes))(keys, *args)
    return [slope, losses, *rest]


def _held_back(
    params: list[Array], batch: list[Array], slope: Shaped[Array, "examples probes ..."]
) -> list[Array]:
    """The arguments of the second pass, which begins where the first one has ended.

    Otherwise XLA would keep what it computes in the first pass for the second, and with
    it the activations of all blocks. One of the two is enough.
    """
    if _bytes(params) < _bytes(batch):
        return [*after(params, slope), *batch]
    return [*params, *after(batch, slope)]


def _slopes(
    program: ProgramOfOne,
    keys: Shaped[Array, "examples probes *data"],
    slope: Shaped[Array, "examples probes ..."],
    weight: float,
) -> Slopes:
    """The results of the first pass that the second one needs."""
    if program.partition.is_exact:
        return Slopes(keys, slope, weight)
    slope = slope / keys.shape[1]
    if program.by_position is None:
        return Slopes(keys, slope, weight)
    later = lax.cumsum(slope, 2, reverse=True)
    return Slopes(keys, later[..., 0], weight, later)


def _second_pass(
    program: ProgramOfOne, args: list[Leaf], slopes: Slopes, groups: int
) -> tuple:
    """The results of the program, the gradient by each input, and the noise."""

    def second_pass():
        return differentiate_blocks(program.partition, args, slopes, groups)

    convolves = CONVOLUTION in primitives_of(program.partition.jaxpr)
    if convolves and jax.default_backend() == "cpu":
        second_pass = with_axes_in_order(second_pass)
    return second_pass()


def _zero_unless_finite(gradient: list[Array], others: list[Array]) -> list[Array]:
    """The gradient, or zeros if anything of it or of the others is not finite."""
    finite = jnp.array(True)
    for x in (*others, *gradient):
        finite &= jnp.all(jnp.isfinite(x))
    return [jnp.where(finite, part, 0) for part in gradient]


def _of_each(program: ProgramOfOne, results: list[Leaf], keys: Array) -> list[Array]:
    """The results of the second pass with the examples in front of all of them."""
    cut = program.partition
    repeated = jax.vmap(lambda key, x: x, (0, None))
    return [
        repeated(keys, x) if is_of_all(cut.graph, v) else x
        for v, x in zip(cut.jaxpr.outvars, results)
    ]


def _numbers(batch: PyTree, examples: int) -> Int[Array, " examples"]:
    """The number of each example, sharded as these are where types say how."""
    numbers = jnp.arange(examples)
    sharding = jax.typeof(jax.tree.leaves(batch)[0]).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return numbers
    spec = jax.sharding.PartitionSpec(*sharding.spec[:1])
    return jax.sharding.reshard(numbers, sharding.update(spec=spec))


def _keys(
    key: PRNGKeyArray, numbers: Int[Array, " examples"], probes: int
) -> Shaped[Array, "examples probes *data"]:
    """One for each probe of each example."""
    of_probe = jax.vmap(jax.random.fold_in, (None, 0))
    of_example = jax.vmap(of_probe, (0, None))
    return of_example(of_probe(key, numbers), jnp.arange(probes))


def _bytes(leaves: list[Array]) -> int:
    return sum(x.size * x.dtype.itemsize for x in leaves)


def of_one(x: Array) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one example."""
    if in_shard_map():  # where the type says along what it varies
        return jax.eval_shape(lambda: x[0])
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


def _groups(examples: int) -> int:
    """The number of equal groups, about eight; each of them holds a gradient."""
    if examples == 1:
        raise ValueError(
            "return_noise needs at least 2 examples, from whose spread the noise "
            "follows; got a batch of 1."
        )
    few = [n for n in range(2, 8 * _GROUPS) if not examples % n]
    # A prime number of examples can only be taken one by one.
    return min(few, key=lambda n: (n < _GROUPS, abs(n - _GROUPS)), default=examples)


# Checks of the arguments.


def check_blocks(blocks: object) -> None:
    """Refuse what is no number of blocks.

    Raises:
      ValueError, TypeError: naming what came.
    """
    if blocks is None or (isinstance(blocks, str) and blocks == "marked"):
        return
    if isinstance(blocks, (str, bool)):
        raise ValueError(
            f'blocks must be an integer, None for all, or "marked"; got {blocks!r}.'
        )
    check_size("blocks", blocks)


def read_params(params: PyTree) -> PyTree:
    """Parameters that one can differentiate by.

    Raises:
      ValueError, TypeError: naming the one that is not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = f"params{jax.tree_util.keystr(path)}"
        check_array(name, leaf)
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "parameters must be real floating-point arrays; "
                f"{name} has dtype {dtype}. Hand integers and complex "
                "numbers to loss_of_one in another way, such as by a closure."
            )
    if not jax.tree.leaves(params):
        raise ValueError(f"params holds no array to differentiate by; got {params!r}.")
    return params


def read_batch(batch: PyTree) -> tuple[PyTree, int]:
    """A batch of arrays, and how many examples it has.

    Raises:
      ValueError: if its leaves do not agree about that.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    sizes = {f"batch{jax.tree_util.keystr(path)}": list(x.shape) for path, x in leaves}
    leading = {shape[0] if shape else 0 for shape in sizes.values()}
    if len(leading) != 1 or not all(leading):
        raise ValueError(
            "the leaves of the batch must all lead with the examples, [B, ...] with "
            f"the same B of at least 1; got {sizes or 'no leaf'}."
        )
    return batch, leading.pop()


def _checked_loss(loss: PyTree, hint: str = "") -> Array:
    check_real_scalar("loss_of_one, the loss of one example, must return", loss, hint)
    return jnp.asarray(loss)
