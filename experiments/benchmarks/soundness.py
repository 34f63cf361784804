"""What each remedy for XLA's wrong sums costs (``fomoh_jax/_xla.py``).

    python -m experiments.benchmarks.soundness

A flag holds for a process, so that each remedy has one. They take turns, one call each,
and times are compared within a round. Where a remedy leaves the compiled program as it
is, nothing is timed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

import fomoh_jax
from experiments.benchmarks import environment, operators, ways, workloads
from experiments.benchmarks.measurement import calls_per_sample, sample
from experiments.benchmarks.tables import RESULTS
from fomoh_jax import _xla
from fomoh_jax.hyperdual import Operation, linear

NOTHING, BARRIER = "nothing", "barrier"
REMEDIES = {
    NOTHING: "",
    "-reduce": _xla.REMEDY,
    "no ynn fusions": f"{_xla.FLAG}=",
    BARRIER: "",
}
WORKER = "--worker"
SAME = "same"


@dataclasses.dataclass
class Config:
    rounds: int = 15
    """Times that each remedy is timed on each row."""
    rows: str = ""
    """Only the rows whose name holds this."""
    out: Path = RESULTS
    """The folder of the table."""


def main(config: Config) -> None:
    chosen = [name for name in rows() if config.rows in name]
    jaxlib = f"jaxlib {_xla.VERSION}"
    machine = environment.describe()
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; {jaxlib}, float32. Time over "
        f"that without a remedy: the median of {config.rounds} paired ratios, their "
        f'quartiles; the ratio of the fastest. "{SAME}": the same program is compiled.',
        "",
        f"| program | {NOTHING}, ms | {' | '.join(list(REMEDIES)[1:])} |",
        f"| --- {'| ---: ' * len(REMEDIES)}|",
    ]
    print(*lines, sep="\n", flush=True)
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name)) for name in REMEDIES}
        for name in chosen:
            lines.append(line(name, seconds(name, workers, config.rounds)))
            print(lines[-1], flush=True)
    path = config.out / f"soundness-{environment.slug(jaxlib)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def line(name: str, taken: dict[str, np.ndarray]) -> str:
    cells = [f"{1e3 * np.median(taken[NOTHING]):.3g}"]
    for remedy in list(REMEDIES)[1:]:
        if remedy not in taken:
            cells.append(SAME)
            continue
        quartiles = np.percentile(taken[remedy] / taken[NOTHING], (50, 25, 75))
        fastest = np.min(taken[remedy]) / np.min(taken[NOTHING])
        cells.append("{:.2f} ({:.2f}–{:.2f}); {:.2f}".format(*quartiles, fastest))
    return f"| {name} | {' | '.join(cells)} |"


def seconds(
    row: str, workers: dict[str, Callable[[str], str]], rounds: int
) -> dict[str, np.ndarray]:
    """Of one call under each remedy that makes a difference, ``[rounds]``."""
    programs = {name: ask(row) for name, ask in workers.items()}
    unlike = lambda name: programs[name] != programs[NOTHING]
    names = [name for name in workers if name == NOTHING or unlike(name)]
    taken: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in np.roll(names, i):
            taken[name].append(float(workers[name](row)))
    return {name: np.array(times) for name, times in taken.items()}


@contextlib.contextmanager
def worker(remedy: str) -> Iterator[Callable[[str], str]]:
    """A process with a remedy, as a function from a row to its answer."""
    process = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, WORKER, remedy],
        env=os.environ | {"XLA_FLAGS": REMEDIES[remedy], _xla.OPT_OUT: "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    requests, answers = process.stdin, process.stdout

    def ask(row: str) -> str:
        print(row, file=requests, flush=True)
        return answers.readline()

    with process:
        yield ask
        requests.close()


def serve(remedy: str) -> None:
    """Answers the name of a row by its program, and by the seconds of a call later."""
    if remedy == BARRIER:
        fomoh_jax.register_rule(lax.reduce_sum_p)(sum_behind_barrier)
    jax.config.update("jax_enable_compilation_cache", False)
    current, timed = "", ()
    for line in sys.stdin:
        row = line.strip()
        if row == current:
            print(sample(*timed), flush=True)
            continue
        function, args = rows()[row]()
        compiled = jax.jit(function).lower(*args).compile()
        call = functools.partial(compiled, *args)
        current, timed = row, (call, calls_per_sample(call))
        print(fingerprint(compiled.as_text()), flush=True)


def fingerprint(program: str) -> str:
    """Of what is computed, whatever the lines that it comes from."""
    return hashlib.sha256(re.sub(r", metadata={.*?}", "", program).encode()).hexdigest()


class _BehindBarrier(Operation):
    """An operation that XLA cannot fuse with what makes its operands."""

    def __call__(self, *primals):
        return super().__call__(*lax.optimization_barrier(primals))


def sum_behind_barrier(form, op, args):
    op = _BehindBarrier(op.primitive, op.params, op.inputs, op.outputs)
    return linear(form, op, args)


def rows() -> dict[str, Callable[[], tuple[Callable, tuple]]]:
    """What makes the function of each row and its arguments, by name.

    Ours on programs of the suite, and plain JAX on the same: the flag holds for all
    that a process compiles.
    """
    mlp, dtype, wide = workloads.mlp, jnp.dtype("float32"), (784, 100, 10)
    relu = lambda: mlp(wide, 2048, jax.nn.relu, dtype)
    tanh = lambda: mlp(wide, 2048, jnp.tanh, dtype)
    deep = lambda: mlp((256,) * 6 + (10,), 256, jnp.tanh, dtype)
    cnn = lambda: workloads.digits("cnn", 256, dtype)
    transformer = lambda: workloads.transformer(4, 128, 128, 8, dtype)
    laplacians = functools.partial(operators.laplacians, 10, 64, 512, dtype)
    hessians = functools.partial(operators.hessians, 100, 64, dtype)
    table: dict[str, Callable] = {}
    for name, make, ks in (
        ("MLP relu", relu, (2, 10)),
        ("MLP tanh", tanh, (2, 10)),
        ("MLP 5×256", deep, (5,)),
        ("CNN", cnn, (3,)),
        ("transformer", transformer, (5,)),
    ):
        for k in ks:
            table[f"quadratic model, {name}, k={k}"] = functools.partial(model, make, k)
        table[f"jax.grad, {name}"] = functools.partial(gradient, make)
    for title, contenders in (
        ("Laplacian of a tanh network, D=10", laplacians),
        ("Hessian of a tanh network, D=100", hessians),
    ):
        for name in ("fomoh_jax", "nested jvp"):
            table[f"{title}, {name}"] = lambda c=contenders, n=name: c()[n][:2]
    table["jax.hessian of a tanh network, D=100"] = lambda: hessians()["jax.hessian"][
        :2
    ]
    for name, laplacian in (
        ("fomoh_jax", fomoh_jax.laplacian),
        ("jax.hessian", lambda f: lambda x: jnp.trace(jax.hessian(f)(x))),
    ):
        table[f"Laplacian of a FermiNet-like wave function, D=24, {name}"] = (
            functools.partial(kinetic, laplacian)
        )
    return table


def model(make: Callable, k: int) -> tuple[Callable, tuple]:
    loss, params, data = make()
    return ways.ours(loss), (params, workloads.directions(params, k), *data)


def gradient(make: Callable) -> tuple[Callable, tuple]:
    loss, params, data = make()
    return jax.grad(loss), (params, *data)


def kinetic(laplacian: Callable) -> tuple[Callable, tuple]:
    """Of a batch of 16 positions of 8 electrons."""
    positions = jnp.asarray(workloads.normal(0, 16, 24))
    return jax.vmap(laplacian(wave_function)), (positions,)


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
    if sys.argv[1:2] == [WORKER]:
        serve(sys.argv[2])
    else:
        main(tyro.cli(Config))
