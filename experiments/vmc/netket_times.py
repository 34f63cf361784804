"""Time NetKet's local kinetic energies beside the same by one forward pass.

    pip install '.[ecosystem]'
    python -m experiments.vmc.netket_times

NetKet's operator takes the diagonal of a whole Hessian of log ψ, and its gradient once
more. ``ForwardKineticEnergy`` overrides the one method that does so, and is used as
NetKet's is: in a Hamiltonian, with ``MCState.expect``, with any masses and a complex
log ψ.

Writes ``netket.md`` into ``experiments/results/vmc`` and prints it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import netket as nk
import numpy as np
import tyro
from netket.experimental.geometry import FreeSpace
from netket.experimental.hilbert import Particle

import fomoh_jax
from experiments import study
from experiments.benchmarks.measurement import OURS, Contender, Limits, Row, measure
from experiments.benchmarks.report import megabytes, milliseconds, times

THEIRS = "NetKet"


@dataclasses.dataclass(frozen=True)
class Config:
    """Local kinetic energies in three dimensions, with masses that differ."""

    samples: int = 200
    """Configurations."""
    repeats: int = 15
    """Rounds in which each way is timed once; 0 to compile and count alone."""
    seconds_per_row: float = 30.0
    """A row that takes longer stops early, after three rounds."""
    out: Path = study.RESULTS
    """A folder; the table is in its folder vmc."""


class ForwardKineticEnergy(nk.operator.KineticEnergy):
    """NetKet's kinetic energy, with gradient and Laplacian from one pass."""

    def _expect_kernel_single(
        self, logpsi: Callable, params: Any, x: jax.Array
    ) -> jax.Array:
        weights = jnp.broadcast_to(1 / self.mass, x.shape)
        log_psi = lambda x: logpsi(params, x)
        operator = fomoh_jax.value_grad_and_laplacian(log_psi, weights=weights)
        _, gradient, laplacian = operator(x)
        return -0.5 * (laplacian + jnp.sum(weights * gradient**2))


class LogPsi(nn.Module):
    """A tanh network times a Gaussian, with a phase if it is complex.

    Attributes:
      widths: of the hidden layers.
      is_complex: whether it has a phase.
      dtype: of the weights.
    """

    widths: tuple[int, ...]
    is_complex: bool
    dtype: Any = float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for width in self.widths:
            y = jnp.tanh(nn.Dense(width, param_dtype=self.dtype)(y))
        size, phase = jnp.moveaxis(nn.Dense(2, param_dtype=self.dtype)(y), -1, 0)
        size = size - 0.5 * jnp.sum(x**2, axis=-1)
        return size + 1j * phase if self.is_complex else size


def rows(samples: int) -> list[Row]:
    """The networks, in both precisions."""
    found = []
    for dtype in ("float32", "float64"):
        for count, width in ((2, 64), (6, 64), (6, 256), (20, 128)):
            for is_complex in (False, True):
                log_psi = LogPsi((width, width), is_complex, dtype)
                title = f"{'complex' if is_complex else 'real'}, {dtype}"
                sizes = {"particles": count, "width": width}
                make = lambda n=count, f=log_psi: contenders(n, f, samples)
                found.append(Row(title, sizes, make))
    return found


def contenders(count: int, log_psi: LogPsi, samples: int) -> dict[str, Contender]:
    """Local energies of that many particles."""
    particles = Particle(N=count, geometry=FreeSpace(d=3))
    mass = np.repeat(np.linspace(1, 2, count), 3).astype(log_psi.dtype)
    x = jax.random.normal(jax.random.key(1), (samples, 3 * count), log_psi.dtype)
    variables = log_psi.init(jax.random.key(0), x)

    def local(kinetic):
        operator = kinetic(particles, mass)

        def energies(variables, x):
            found = operator._expect_kernel(log_psi.apply, variables, x)
            return jnp.real(found), jnp.imag(found)

        return Contender(energies, (variables, x))

    kinetics = {OURS: ForwardKineticEnergy, THEIRS: nk.operator.KineticEnergy}
    return {name: local(kinetic) for name, kinetic in kinetics.items()}


def main(config: Config) -> None:
    """Measure every row, and write the table."""
    study.at_least(1, config, "samples")
    limits = Limits(config.repeats, config.seconds_per_row, tolerance=1e-3)
    every = {row.name: row for row in rows(config.samples)}
    records = [measure(row, limits) for _, row in study.progress(every, "row")]
    table = study.table(
        {"log ψ": record["workload"]}
        | record["sizes"]
        | {f"{OURS} [ms]": milliseconds(record, OURS)}
        | {f"{THEIRS} ÷ {OURS}": times(record, THEIRS)}
        | {f"{name} [MB]": megabytes(record, name) for name in (OURS, THEIRS)}
        for record in records
    )
    text = (
        f"Local kinetic energies at {config.samples} configurations of particles in "
        f"three dimensions, networks of two hidden layers, jax {jax.__version__}, "
        f"NetKet {nk.__version__}: medians of paired ratios and their quartiles, and "
        f"temporary memory by the compiler's count.\n\n{table}"
    )
    study.write(config.out / "vmc", text, file="netket.md")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
