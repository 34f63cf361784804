"""A printable table of the blocks of a model."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax.extend.core import Var
from jaxtyping import PyTree

from fomoh_jax._activations.estimate import (
    check_blocks,
    of_one,
    read_batch,
    read_params,
    read_program,
)
from fomoh_jax._activations.graph import type_of
from fomoh_jax._activations.partition import Block, Blocks, Partition
from fomoh_jax._hyperdual.environment import is_variable


class BlockOfModel(NamedTuple):
    """One block.

    Attributes:
      parameters: their paths in the tree.
      cut: the name, or the shape and dtype, of the activation behind which the model is
        cut; empty if it is not cut there.
      perturbs: ``"activations"``, ``"parameters"``, or ``"nothing"`` where the gradient
        is exact.
      noise: how many numbers are perturbed for one example.
      memory: bytes that the block keeps for one example, by the shapes of what it
        computes; the compiler may need less.
      repeats: how often a loop runs it, once for each iteration.
      causal: whether a perturbation counts only the losses of its own position and of
        later ones.
    """

    parameters: tuple[str, ...]
    cut: str
    perturbs: str
    noise: int
    memory: int
    repeats: int
    causal: bool


class BlocksOfModel(tuple[BlockOfModel, ...]):
    """The blocks of a model, from the first to the last; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        titles = ("block", "cut", "perturbs", "noise", "bytes", "times", "causal")
        titles = (*titles, "parameters")
        rows = [titles] + [
            (
                *(str(i), block.cut or "–", block.perturbs, str(block.noise)),
                *(str(block.memory), str(block.repeats)),
                *("yes" if block.causal else "no", " ".join(block.parameters)),
            )
            for i, block in enumerate(self)
        ]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)


def blocks_of(
    loss_of_one: Callable,
    params: PyTree,
    example: PyTree,
    *,
    blocks: Blocks = None,
    has_aux: bool = False,
) -> BlocksOfModel:
    """The blocks into which :func:`fomoh_jax.forward_value_and_grad` cuts a model.

    Args:
      loss_of_one: ``loss_of_one(params, example)``, the loss of one example.
      params: its parameters, or their shapes.
      example: one example, or its shapes (``jax.ShapeDtypeStruct``).
      blocks, has_aux: as in :func:`fomoh_jax.forward_value_and_grad`.

    Returns:
      A tuple with one entry for each block, which prints as a table. The fields of an
      entry are ``parameters`` (paths in the tree), ``cut`` (name or shape of the
      activation behind which the model is cut), ``perturbs``, ``noise`` (how many
      numbers are perturbed for one example), ``memory`` (bytes kept for one example;
      column "bytes"), ``repeats`` (iterations of the loop around it; column "times")
      and ``causal`` (whether a perturbation counts only the losses of its own position
      and of later ones). The variance of the estimate, relative to the square of the
      gradient, is proportional to the sum of ``noise · repeats`` divided by
      (examples × probes).

    Raises:
      ValueError, TypeError: as :func:`fomoh_jax.forward_value_and_grad`.

    Example:
      >>> import jax.numpy as jnp
      >>> import fomoh_jax
      >>> def loss_of_one(params, x):
      ...   for w in params[:-1]:
      ...     x = jnp.tanh(x @ w)
      ...   return jnp.sum((x @ params[-1]) ** 2)
      >>> params = [jnp.ones((4, 3), "float32"), jnp.ones((3, 2), "float32")]
      >>> print(fomoh_jax.blocks_of(loss_of_one, params, params[0][:, 0]))
      block  cut         perturbs     noise  bytes  times  causal  parameters
      0      float32[3]  activations  3      24     1      no      [0]
      1      –           nothing      0      20     1      no      [1]
    """
    check_blocks(blocks)
    params = read_params(params)
    program = read_program(loss_of_one, params, example, has_aux, blocks)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    inputs = program.partition.jaxpr.invars
    names = {v: (_name(path),) for v, (path, _) in zip(inputs, leaves)}
    return BlocksOfModel(_rows(program.partition, names, 1))


def kinds_of_leaves(
    loss_of_one: Callable, params: PyTree, batch: PyTree, blocks: Blocks, has_aux: bool
) -> tuple[list[str], Blocks]:
    """The kind of gradient of each leaf of the parameters, and the number of blocks.

    Returns:
      ``"exact"``, ``"estimated"`` or ``"unused"`` for each leaf; and ``blocks``, or the
      number of blocks that the model has if it has fewer.
    """
    example = jax.tree.map(of_one, read_batch(batch)[0])
    found = blocks_of(loss_of_one, params, example, has_aux=has_aux)
    if isinstance(blocks, int):
        blocks = min(blocks, sum(block.repeats for block in found))
    if blocks is not None:
        found = blocks_of(loss_of_one, params, example, blocks=blocks, has_aux=has_aux)
    kinds: dict[str, str] = {}
    for block in found:
        for name in block.parameters:
            if block.perturbs != "nothing":
                kinds[name] = "estimated"
            kinds.setdefault(name, "exact")
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return [kinds.get(_name(path), "unused") for path in paths], blocks


Names = dict[Var, tuple[str, ...]]


def _rows(partition: Partition, names: Names, repeats: int) -> Iterator[BlockOfModel]:
    eqns = partition.jaxpr.eqns
    for eqn in eqns:  # what is computed from parameters has their names
        if partition.graph.is_shared(eqn):
            operands = [v for v in eqn.invars if is_variable(v)]
            of_all = dict.fromkeys(n for v in operands for n in names.get(v, ()))
            names |= dict.fromkeys(eqn.outvars, tuple(of_all))
    for block in partition.blocks:
        read = map(partition.graph.parameter, block.uses)
        parameters = dict.fromkeys(name for v in read for name in names[v])
        yield BlockOfModel(
            tuple(parameters),
            _cut_of(block),
            block.perturbs,
            block.size,
            block.memory,
            repeats,
            block.positions is not None,
        )
    for i, inner in partition.scans.items():
        operands = zip(inner.jaxpr.invars, eqns[i].invars)
        inside = {v: names[x] for v, x in operands if is_variable(x) and x in names}
        yield from _rows(inner, inside, repeats * eqns[i].params["length"])


def _cut_of(block: Block) -> str:
    if block.cut is None:
        return ""
    aval = type_of(block.cut)
    return block.name or f"{aval.dtype}[{','.join(map(str, aval.shape))}]"


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path)
