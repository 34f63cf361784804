"""Measure what each remedy for XLA's wrong sums costs (``fomoh_jax/_xla.py``).

    python -m experiments.benchmarks.soundness

Each program is compiled under each remedy and without any. The compiled programs take
turns, one call each, and times are compared within a round. Where a remedy leaves the
compiled program as it is, nothing is timed.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

import fomoh_jax
from experiments import study
from experiments.benchmarks import (
    environment,
    hessian,
    hyperplane,
    operators,
    workloads,
)
from experiments.benchmarks.measurement import Limits, time_interleaved
from experiments.benchmarks.tables import RESULTS
from experiments.benchmarks.ways import TRACES
from fomoh_jax import _xla
from fomoh_jax._hyperdual import registry
from fomoh_jax.hyperdual import Operation, linear

NOTHING, BARRIER = "nothing", "barrier"
TYPES = _xla.FLAG.removeprefix("--")
KIND = "LIBRARY_FUSION_TYPE_INDIVIDUAL"
# Options of the compiler. It has no "-reduce", so that the types to keep are listed.
REMEDIES = {
    NOTHING: {},
    "-reduce": {TYPES: f"{KIND}_DOT,{KIND}_CONVOLUTION"},
    "no ynn fusions": {TYPES: ""},
    BARRIER: {},
}
Program = tuple[Callable, tuple]  # a function and its arguments


@dataclasses.dataclass
class Config:
    rounds: int = 15
    """Times that each remedy is timed on each row."""
    rows: str = ""
    """Only the rows whose name holds this."""
    out: Path = RESULTS
    """The folder of the table."""


def main(config: Config) -> None:
    # This precedes XLA's start: the flag that fomoh_jax has set would hold for all.
    os.environ |= {"XLA_FLAGS": "", _xla.OPT_OUT: "0"}
    jax.config.update("jax_enable_compilation_cache", False)
    jaxlib = f"jaxlib {_xla.VERSION}"
    machine = environment.describe()
    chosen = {name: make for name, make in rows().items() if config.rows in name}
    lines = [
        measure(name, make(), config.rounds)
        for name, make in study.progress(chosen, "row")
    ]
    text = (
        f"{machine['cpu']}, {machine['cores']} cores; {jaxlib}, float32. Time over "
        f"that without a remedy: the median of {config.rounds} paired ratios, their "
        'quartiles; the ratio of the fastest. "same": the same program is compiled.'
        f"\n\n{study.table(lines)}"
    )
    study.write(config.out, text, f"soundness-{environment.slug(jaxlib)}.md")


def measure(name: str, program: Program, rounds: int) -> dict[str, str]:
    """A row: times of one call under each remedy that makes a difference."""
    programs = {remedy: compiled(remedy, *program) for remedy in REMEDIES}
    plain = fingerprint(programs[NOTHING])
    running = {
        remedy: functools.partial(made, *program[1])
        for remedy, made in programs.items()
        if remedy == NOTHING or fingerprint(made) != plain
    }
    taken = time_interleaved(running, Limits(rounds, seconds=np.inf))
    row = {"program": name, f"{NOTHING}, ms": f"{1e3 * np.median(taken[NOTHING]):.3g}"}
    for remedy in list(REMEDIES)[1:]:
        row[remedy] = "same"
        if remedy in taken:
            quartiles = np.percentile(taken[remedy] / taken[NOTHING], (50, 25, 75))
            fastest = np.min(taken[remedy]) / np.min(taken[NOTHING])
            row[remedy] = "{:.2f} ({:.2f}–{:.2f}); {:.2f}".format(*quartiles, fastest)
    return row


def compiled(remedy: str, function: Callable, args: tuple) -> Any:
    """The program under a remedy."""
    jax.clear_caches()
    # The user's rule ends with this program; the others have the library's.
    with mock.patch.dict(registry._OF_USERS):
        if remedy == BARRIER:
            fomoh_jax.register_rule(lax.reduce_sum_p)(sum_behind_barrier)
        lowered = jax.jit(function).lower(*args)
    return lowered.compile(compiler_options=REMEDIES[remedy])


def fingerprint(program: Any) -> str:
    """The text of a program without the places in the source that it comes from."""
    return re.sub(r", metadata={.*?}", "", program.as_text())


class _BehindBarrier(Operation):
    """An operation that XLA cannot fuse with what makes its operands."""

    def __call__(self, *primals):
        return super().__call__(*lax.optimization_barrier(primals))


def sum_behind_barrier(form, op, args):
    op = _BehindBarrier(op.primitive, op.params, op.inputs, op.outputs)
    return linear(form, op, args)


def rows() -> dict[str, Callable[[], Program]]:
    """Functions that make the program of each row, by the row's name.

    They are ours on programs of the suite and plain JAX on the same, since the flag
    holds for everything that a process compiles.
    """
    contender = lambda name, make, *args: lambda: make(*args)[name][:2]
    table: dict[str, Callable[[], Program]] = {}
    for name, k in [
        *(("MLP relu", 2), ("MLP relu", 10), ("MLP tanh", 2), ("MLP tanh", 10)),
        *(("MLP 5×256", 5), ("CNN", 3), ("transformer", 5)),
    ]:
        make = functools.partial(workloads.named, name, hyperplane.WORKLOADS[name][0])
        model = contender("fomoh_jax", hyperplane.contenders, make, k)
        table[f"quadratic model, {name}, k={k}"] = model
        table[f"jax.grad, {name}"] = functools.partial(gradient, make)
    laplacians = operators.laplacians, 10, 64
    hessians = hessian.contenders, "tanh network", 100
    for name in ("fomoh_jax", "nested jvp"):
        title = f"of a tanh network, D=10, {name}"
        table[f"Laplacian {title}"] = contender(name, *laplacians)
        way = hessian.FORWARD if name == "fomoh_jax" else name
        table[f"Hessian {title.replace('10', '100')}"] = contender(way, *hessians)
    table["jax.hessian of a tanh network, D=100"] = contender("jax.hessian", *hessians)
    for name in ("fomoh_jax", "jax.hessian"):
        title = f"Laplacian of a FermiNet-like wave function, D=24, {name}"
        table[title] = functools.partial(kinetic, TRACES[name])
    return table


def gradient(make: workloads.Make) -> Program:
    loss, params, data = make()
    return jax.grad(loss), (params, *data)


def kinetic(trace: Callable) -> Program:
    """Laplacians of a wave function at 16 positions of 8 electrons."""
    positions = jnp.asarray(workloads.normal(0, 16, 24))
    return jax.vmap(lambda x: trace(wave_function, x, None)), (positions,)


def wave_function(positions: jax.Array, width: int = 64, count: int = 4) -> jax.Array:
    """``log |Σ det|`` of networks of each electron under an exponential envelope."""
    electrons = positions.reshape(-1, 3)
    n = len(electrons)
    to_atoms = electrons[:, None] - workloads.normal(1, 3, 3)
    r = jnp.sqrt(jnp.sum(to_atoms**2, axis=-1))
    h = jnp.concatenate([to_atoms.reshape(n, -1), r], axis=1)
    for seed in range(3):
        everyone = jnp.broadcast_to(jnp.mean(h, axis=0), h.shape)
        h = jnp.concatenate([h, everyone], axis=1)
        h = jnp.tanh(h @ workloads.normal(seed, h.shape[1], width) / width**0.5)
    sigma = pi = jnp.ones((3, count * n))
    envelope = jnp.sum(jnp.exp(-r[..., None] * sigma) * pi, axis=1)
    orbitals = h @ workloads.normal(9, width, count * n) * envelope
    sign, log = jnp.linalg.slogdet(orbitals.reshape(n, count, n).transpose(1, 0, 2))
    largest = lax.stop_gradient(jnp.max(log))
    return jnp.log(jnp.abs(jnp.sum(sign * jnp.exp(log - largest)))) + largest


if __name__ == "__main__":
    main(tyro.cli(Config))
