"""What a data-parallel step sends and how long it takes, predicted and counted.

    python -m experiments.scaling --gflops 4e5 --memory-gb 3000 --normals 100

Predicted for 1 to 4,096 devices and 10⁶ to 10¹¹ parameters, from the rates of one
device, measured here or given, and a network that is given. Counted in the compiled
program for 1 to 8 devices of this machine, beside what the prediction says of them.

A step is not progress: K directions see K of the D components of a gradient. The last
column says how many steps of FoMoH-KD an SGD step has time for, and is far from what
an SGD step is worth. Not counted: what sharded parameters send to be used, which is
the same for a forward pass of either.

Writes ``scaling.png``, ``table.md`` and ``rates.json`` into
``experiments/results/scaling`` and prints the tables.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import fomoh_jax
from experiments import plotting
from experiments.benchmarks.environment import describe
from experiments.collectives import collectives
from fomoh_jax import directions, solvers

METHODS = ("FoMoH-KD", "SGD", "Adam")
HOST_DEVICES = 8
# Numbers that an update reads and writes for each parameter: parameter and gradient in,
# parameter out; Adam's two moments in and out as well.
TOUCHED = {"SGD": 3, "Adam": 7}
# Each random number is made for the pass, for the Gram matrix and for the step.
MADE = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Data-parallel training of a network whose forward pass takes 2D a number."""

    k: int = 8
    """Directions of FoMoH-KD."""
    devices: tuple[int, ...] = (1, 8, 64, 512, 4096)
    parameters: tuple[float, ...] = (1e6, 1e7, 1e8, 1e9, 1e10, 1e11)
    examples: int = 64
    """Examples (or tokens) a device and step."""
    bandwidth_gb: float = 1.25
    """What one device sends in a second, in GB."""
    latency_us: float = 50.0
    """Of one message."""
    gflops: float | None = None
    """Of one device; measured here by default, as the next two."""
    memory_gb: float | None = None
    """What a device reads and writes in a second, in GB."""
    normals: float | None = None
    """Normal random numbers that a device makes in a second, in 10⁹."""
    out: Path = Path("experiments/results")
    """A folder; the results are in its folder scaling."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of one device, a second: operations, bytes of memory, random numbers."""

    flops: float
    memory: float
    normals: float


@dataclasses.dataclass(frozen=True)
class Network:
    """Bytes a second that a device sends, and seconds that a message takes."""

    bandwidth: float
    latency: float


def exchanged_numbers(method: str, parameters: float, k: int) -> float:
    """What is summed over the devices in a step.

    Of FoMoH-KD the value, the slopes and each pair once; else a gradient and the loss.
    """
    if method == "FoMoH-KD":
        return 1 + k + k * (k + 1) / 2
    return parameters + 1


def all_reduce_seconds(numbers: float, devices: int, network: Network) -> float:
    """The faster of a ring, which shares the bytes, and a tree, which has few hops."""
    if devices == 1:
        return 0.0
    size, hops = 4 * numbers, math.ceil(math.log2(devices))
    ring = 2 * (devices - 1) * (size / devices / network.bandwidth + network.latency)
    tree = 2 * hops * (size / network.bandwidth + network.latency)
    return min(ring, tree)


def compute_seconds(
    method: str, parameters: float, config: Config, rates: Rates, work: dict[str, float]
) -> float:
    """Of one device, whatever the others do."""
    forward = 2 * parameters * config.examples / rates.flops
    seconds = work[method] * forward
    if method == "FoMoH-KD":
        random = MADE * config.k * parameters / rates.normals
        return seconds + random + 4 * 3 * parameters / rates.memory
    return seconds + 4 * TOUCHED[method] * parameters / rates.memory


def step_seconds(
    method: str,
    parameters: float,
    devices: int,
    config: Config,
    rates: Rates,
    work: dict[str, float],
) -> float:
    """Of a step whose exchange waits for all of its passes."""
    network = Network(1e9 * config.bandwidth_gb, 1e-6 * config.latency_us)
    numbers = exchanged_numbers(method, parameters, config.k)
    return compute_seconds(
        method, parameters, config, rates, work
    ) + all_reduce_seconds(numbers, devices, network)


def breaking_even(config: Config, rates: Rates, work: dict[str, float]) -> float:
    """Bytes a second below which FoMoH-KD's step is the shorter, for many devices.

    All else being in proportion to the parameters, they do not matter.
    """
    seconds = {m: compute_seconds(m, 1.0, config, rates, work) for m in METHODS}
    return 2 * 4 / (seconds["FoMoH-KD"] - seconds["SGD"])


def measured_rates(config: Config) -> Rates:
    """Those that are given, and of the others this device's."""
    found = describe() if None in (config.gflops, config.memory_gb) else {}
    gflops = config.gflops or found["gemm_gflops"]
    memory = config.memory_gb or found["copy_gb_per_second"]
    normals = config.normals or _normals_per_second() / 1e9
    return Rates(1e9 * gflops, 1e9 * memory, 1e9 * normals)


def _normals_per_second(count: int = 2**22) -> float:
    make = jax.jit(lambda key: jax.random.normal(key, (count,), jnp.float32))
    seconds = []
    for n in range(4):
        key = jax.random.key(n)
        start = time.perf_counter()
        jax.block_until_ready(make(key))
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


WIDTHS = (256, 256, 256, 256, 64)


def parameters_of_the_problem() -> int:
    return sum(map(math.prod, itertools.pairwise(WIDTHS)))


def problem(batch: int) -> tuple[Callable, Any, dict[str, jax.Array]]:
    """A tanh network that a step is compiled for, its parameters and a minibatch."""
    random = lambda n, *s: jax.random.normal(jax.random.key(n), s, jnp.float32)
    params = [
        random(n, *shape) / shape[0] ** 0.5
        for n, shape in enumerate(itertools.pairwise(WIDTHS))
    ]

    def loss(params, x, y):
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return jnp.mean((x @ params[-1] - y) ** 2)

    return loss, params, {"x": random(8, batch, WIDTHS[0]), "y": random(9, batch, 64)}


def optimiser(method: str, k: int) -> optax.GradientTransformationExtraArgs:
    """As the study has them."""
    if method == "FoMoH-KD":
        source = directions.deferred(directions.gaussian(k))
        step = fomoh_jax.scale_by_hyperplane(source, solvers.self_tuning())
        return optax.chain(step, optax.scale(-1.0))
    tx = {"SGD": optax.sgd, "Adam": optax.adam}[method](1e-3)
    return optax.with_extra_args_support(tx)


def compiled_step(method: str, k: int, devices: int, batch: int) -> Any:
    """A data-parallel step for so many devices of this machine."""
    loss, params, data = problem(batch)
    tx = optimiser(method, k)

    def step(params, state, data):
        value_fn = lambda p: loss(p, **data)
        grads = None if method == "FoMoH-KD" else jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    args = jax.device_put((params, tx.init(params)), everywhere)
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
    return jax.jit(step).lower(*args, data).compile()


def counted(k: int, batch: int = 1024) -> dict[str, float]:
    """Of each method a step's operations over those of a forward pass, one device.

    The compiler's count of random numbers is left out: these have a rate of their own.
    """
    loss, params, data = problem(batch)
    flops = lambda f, *a: jax.jit(f).lower(*a).compile().cost_analysis()["flops"]
    value = lambda p: loss(p, **data)
    forward = flops(value, params)
    vectors = jax.tree.map(lambda p: jnp.ones((k, *p.shape), p.dtype), params)
    model = lambda p, v: fomoh_jax.quadratic_model(value, (p,), (v,))
    gradient = flops(jax.grad(value), params) / forward
    return {
        "FoMoH-KD": flops(model, params, vectors) / forward,
        "SGD": gradient,
        "Adam": gradient,
    }


def sent(config: Config) -> str:
    """What a step exchanges on 1 to 8 devices, counted, beside the prediction."""
    size = parameters_of_the_problem()
    columns: dict[str, list[str]] = {
        "method": [],
        "devices": [],
        "numbers predicted": [],
        "numbers counted": [],
        "collectives": [],
        "the largest": [],
    }
    for method in METHODS:
        for devices in (1, 2, 4, HOST_DEVICES):
            hlo = compiled_step(method, config.k, devices, 64).as_text()
            found = collectives(hlo)
            expected = exchanged_numbers(method, size, config.k) if devices > 1 else 0
            row = (
                method,
                devices,
                f"{expected:,.0f}",
                f"{sum(c.numbers for c in found):,}",
                len(found),
                f"{max((c.numbers for c in found), default=0):,}",
            )
            for column, cell in zip(columns.values(), row):
                column.append(str(cell))
    return plotting.table(columns)


def predicted(config: Config, rates: Rates, work: dict[str, float]) -> str:
    """Seconds a step, and bytes that a device's share of the exchange has."""
    columns: dict[str, list[str]] = {
        "parameters": [],
        "devices": [],
        **{f"{method} [s]": [] for method in METHODS},
        "exchanged, FoMoH-KD": [],
        "exchanged, SGD": [],
        "FoMoH-KD steps an SGD step": [],
    }
    for parameters, devices in itertools.product(config.parameters, config.devices):
        seconds = {
            m: step_seconds(m, parameters, devices, config, rates, work)
            for m in METHODS
        }
        sizes = [
            4 * exchanged_numbers(m, parameters, config.k) * (devices > 1)
            for m in ("FoMoH-KD", "SGD")
        ]
        row = (
            f"1e{math.log10(parameters):.3g}",
            f"{devices:,}",
            *(f"{s:.3g}" for s in seconds.values()),
            *map(_bytes, sizes),
            f"{seconds['SGD'] / seconds['FoMoH-KD']:.3g}",
        )
        for column, cell in zip(columns.values(), row):
            column.append(cell)
    return plotting.table(columns)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def draw(config: Config, rates: Rates, work: dict[str, float], path: Path) -> None:
    """Time a step against devices, and bytes against parameters."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    shades = plt.get_cmap("viridis")
    chosen = config.parameters[::2]
    for n, parameters in enumerate(chosen):
        color = shades(n / max(1, len(chosen) - 0.5))
        for method, style in (("FoMoH-KD", "-"), ("SGD", "--")):
            times = [
                step_seconds(method, parameters, d, config, rates, work)
                for d in config.devices
            ]
            label = f"{method}, $10^{{{math.log10(parameters):.0f}}}$"
            left.plot(config.devices, times, style, color=color, label=label)
    left.set(xscale="log", yscale="log", xlabel="devices", ylabel="seconds a step")
    left.legend(fontsize=7, ncols=len(chosen))
    for method, style in (("FoMoH-KD", "-"), ("SGD", "--")):
        sizes = [4 * exchanged_numbers(method, p, config.k) for p in config.parameters]
        right.plot(config.parameters, sizes, style, color="C0", label=method)
    right.set(
        xscale="log", yscale="log", xlabel="parameters", ylabel="bytes exchanged a step"
    )
    right.legend()
    plotting.save(figure, path)


def report(config: Config) -> None:
    """Measure, predict, write and print."""
    folder = config.out / "scaling"
    folder.mkdir(parents=True, exist_ok=True)
    rates, work = measured_rates(config), counted(config.k)
    given = {
        "rates": dataclasses.asdict(rates),
        "forward passes a step": work,
        "network": {"GB/s": config.bandwidth_gb, "µs": config.latency_us},
        "k": config.k,
        "examples a device": config.examples,
    }
    (folder / "rates.json").write_text(json.dumps(given, indent=1) + "\n")
    passes = ", ".join(f"{m} {n:.3g}" for m, n in work.items())
    text = (
        f"One device: {rates.flops / 1e9:.4g} GFLOP/s, {rates.memory / 1e9:.3g} GB/s, "
        f"{rates.normals / 1e9:.3g}e9 normal numbers a second. Network: "
        f"{config.bandwidth_gb:g} GB/s a device, {config.latency_us:g} µs a message. "
        f"K = {config.k}, {config.examples} examples a device. Forward passes a step, "
        f"as the compiler counts operations: {passes}.\n\n"
        f"Below {_bytes(breaking_even(config, rates, work))}/s a device, the step of "
        "FoMoH-KD is shorter than that of SGD for many devices and large models.\n\n"
        "Counted in the compiled program:\n\n"
        f"{sent(config)}\n\nPredicted:\n\n{predicted(config, rates, work)}\n"
    )
    (folder / "table.md").write_text(text)
    draw(config, rates, work, folder / "scaling.png")
    print(text)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
    report(tyro.cli(Config, description=__doc__))
