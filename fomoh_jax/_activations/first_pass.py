"""The first pass: what perturbations do to the loss of an example.

One number for each example comes back, the derivative of its loss along all of its
perturbations at once, by forward mode; or one for each position of a sequence.
"""

from collections.abc import Sequence

from jax.extend.core import JaxprEqn
from jaxtyping import Array, Float

from fomoh_jax._activations.graph import Use
from fomoh_jax._activations.partition import Partition
from fomoh_jax._activations.perturbations import of_block, perturbed, signs
from fomoh_jax._activations.program import Values, scan_with
from fomoh_jax._hyperdual.jaxprs import bind, read
from fomoh_jax._types import Leaf


def evaluate_perturbed(
    partition: Partition, args: Sequence[Leaf], key: Array, scale: Float[Array, ""]
) -> list[Leaf]:
    """The program of one example, perturbed by ``scale``, which is zero."""
    values = perturbed_values(partition, args, key, scale)
    return read(values, partition.jaxpr.outvars)


def perturbed_values(
    partition: Partition, args: Sequence[Leaf], key: Array, scale: Float[Array, ""]
) -> Values:
    """All variables of the program of one example."""
    program = partition.jaxpr
    values = partition.graph.given(args)
    cuts = {block.cut: i for i, block in enumerate(partition.blocks)}
    at = {}
    for i, block in enumerate(partition.blocks):
        if block.perturbs == "parameters":
            variables = partition.graph.parameters(block.uses)
            for use in block.uses:
                at[use] = i, variables.index(partition.graph.parameter(use))
    perturb = lambda key, x: perturbed(scale, x, signs(key, x.shape, x.dtype))
    for i, eqn in enumerate(program.eqns):
        operands = read(values, eqn.invars)
        for j, x in enumerate(operands):
            if Use(i, j) in at:
                block, place = at[Use(i, j)]
                operands[j] = perturb(of_block(of_block(key, block), place), x)
        if i in partition.scans:
            inner = of_block(key, len(partition.blocks) + i)
            outs = _perturbed_scan(partition.scans[i], eqn, operands, inner, scale)
        else:
            outs = bind(eqn, operands)
        values.update(zip(eqn.outvars, outs))
        for v in eqn.outvars:
            if v in cuts:
                values[v] = perturb(of_block(key, cuts[v]), values[v])
    return values


def _perturbed_scan(
    body: Partition, eqn: JaxprEqn, operands: list[Leaf], key: Array, scale: Array
) -> list[Leaf]:
    def step(values, time):
        return evaluate_perturbed(body, values, of_block(key, time), scale), None

    outs, _ = scan_with(eqn, operands, step)
    return outs
