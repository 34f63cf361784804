"""Predict and count what a data-parallel step sends and how long it takes.

    python -m experiments.scaling --gflops 4e5 --memory-gb 3000 --normals 100

Predicted for 1 to 4,096 devices and 10⁶ to 10¹¹ parameters, from the rates of one
device, measured here or given, and a network that is given. Counted in the compiled
program for 1 to 8 devices of this machine, beside what the prediction says of them.

A step is not progress: K directions see K of the D components of a gradient. The last
column says how many steps of FoMoH-KD an SGD step has time for, and is far from what
an SGD step is worth. Not counted: what sharded parameters send to be used, which is
the same for a forward pass of either.

Writes ``scaling.png`` and ``table.md`` into ``experiments/results/scaling`` and prints
the tables.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
import pandas as pd
import tyro
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.ticker import EngFormatter

import fomoh_jax
from experiments import study
from experiments.benchmarks.environment import fastest, rates
from experiments.collectives import collectives
from experiments.minimisation import exact_gradient, make_step
from fomoh_jax import directions, plans, solvers

METHODS = ("FoMoH-KD", "SGD", "Adam")
HOST_DEVICES = 8
# Numbers that an update reads and writes for each parameter: parameter and gradient in,
# parameter out; Adam's two moments in and out as well.
TOUCHED = {"FoMoH-KD": 3, "SGD": 3, "Adam": 7}
# Each random number is made for the pass, for the Gram matrix and for the step.
MADE = {"FoMoH-KD": 3, "SGD": 0, "Adam": 0}


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
    """Gigabytes that one device sends in a second."""
    latency_us: float = 50.0
    """Latency of one message."""
    gflops: float | None = None
    """Speed of one device; measured here by default, as are the next two."""
    memory_gb: float | None = None
    """Gigabytes that a device reads and writes in a second."""
    normals: float | None = None
    """Normal random numbers that a device makes in a second, in 10⁹."""
    out: Path = study.RESULTS
    """A folder; the results are in its folder scaling."""


class Device(NamedTuple):
    """The rates of one device.

    Attributes:
      flops, memory, normals: operations, bytes and random numbers a second.
      passes: the operations of a step over those of a forward pass, by method.
    """

    flops: float
    memory: float
    normals: float
    passes: dict[str, float]


def exchanged_numbers(method: str, parameters: float, k: int) -> float:
    """How many numbers are summed over the devices in a step.

    FoMoH-KD sums the value, the slopes and each pair once, the others a gradient and
    the loss.
    """
    return 1 + k + k * (k + 1) / 2 if method == "FoMoH-KD" else parameters + 1


def all_reduce_seconds(numbers: float, devices: int, config: Config) -> float:
    """The faster of a ring, which shares the bytes, and a tree, which has few hops."""
    if devices == 1:
        return 0.0
    size, hops = 4 * numbers, math.ceil(math.log2(devices))
    bandwidth, latency = 1e9 * config.bandwidth_gb, 1e-6 * config.latency_us
    ring = 2 * (devices - 1) * (size / devices / bandwidth + latency)
    tree = 2 * hops * (size / bandwidth + latency)
    return min(ring, tree)


def step_seconds(
    method: str, parameters: float, devices: int, config: Config, device: Device
) -> float:
    """The duration of a step whose exchange waits for all of its passes."""
    forward = 2 * parameters * config.examples / device.flops
    random = MADE[method] * config.k * parameters / device.normals
    update = 4 * TOUCHED[method] * parameters / device.memory
    numbers = exchanged_numbers(method, parameters, config.k)
    exchange = all_reduce_seconds(numbers, devices, config)
    return device.passes[method] * forward + random + update + exchange


def breaking_even(config: Config, device: Device) -> float:
    """Bytes a second below which FoMoH-KD's step is the shorter, for many devices.

    The number of parameters does not matter, since all else is proportional to it.
    """
    ours, sgd = (step_seconds(m, 1.0, 1, config, device) for m in METHODS[:2])
    return 2 * 4 / (ours - sgd)


def describe_device(config: Config) -> Device:
    """The rates that are given, and those of this device for the others."""
    measured = rates() if None in (config.gflops, config.memory_gb) else {}
    gflops = config.gflops or measured["gemm_gflops"]
    memory = config.memory_gb or measured["copy_gb_per_second"]
    normals = config.normals or normals_per_second() / 1e9
    return Device(1e9 * gflops, 1e9 * memory, 1e9 * normals, counted(config.k))


def normals_per_second(count: int = 2**22) -> float:
    make = jax.jit(lambda key: jax.random.normal(key, (count,), jnp.float32))
    key = jax.random.key(0)
    return count / fastest(lambda: make(key))


SHAPES = [*itertools.repeat((256, 256), 3), (256, 64)]  # of the problem's parameters


def problem(batch: int) -> tuple[Callable, Any, tuple[jax.Array, jax.Array]]:
    """A tanh network that a step is compiled for, its parameters and a minibatch."""
    random = lambda n, *s: jax.random.normal(jax.random.key(n), s, jnp.float32)
    params = [random(n, *shape) / shape[0] ** 0.5 for n, shape in enumerate(SHAPES)]

    def loss(params, x, y):
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return jnp.mean((x @ params[-1] - y) ** 2)

    return loss, params, (random(8, batch, 256), random(9, batch, 64))


def optimiser(method: str, k: int) -> optax.GradientTransformation:
    """The optimiser of that name."""
    if method == "FoMoH-KD":
        source = directions.deferred(directions.gaussian(k))
        step = fomoh_jax.scale_by_hyperplane(source, solvers.self_tuning())
        return optax.chain(step, optax.scale(-1.0))
    tx = {"SGD": optax.sgd, "Adam": optax.adam}[method](1e-3)
    return optax.chain(exact_gradient(), tx)


def compiled_step(method: str, k: int, devices: int, batch: int) -> Any:
    """A data-parallel step for so many devices of this machine."""
    loss, params, data = problem(batch)
    tx = optimiser(method, k)
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=automatic)
    put = lambda tree, *axes: jax.device_put(
        tree, NamedSharding(mesh, PartitionSpec(*axes))
    )
    args = (*put((params, tx.init(params))), *put(data, "data"))
    return jax.jit(make_step(loss, tx)).lower(*args).compile()


def counted(k: int, batch: int = 1024) -> dict[str, float]:
    """The operations of a step over those of a forward pass, by method, on one device.

    The compiler's count of random numbers is left out: these have a rate of their own.
    """
    loss, params, data = problem(batch)
    flops = lambda f, *a: jax.jit(f).lower(*a).compile().cost_analysis()["flops"]
    value = lambda p: loss(p, *data)
    forward = flops(value, params)
    vectors = jax.tree.map(lambda p: jnp.ones((k, *p.shape), p.dtype), params)
    model = lambda p, v: fomoh_jax.quadratic_model(
        value, (p,), (v,), plan=plans.forward()
    )
    gradient = flops(jax.grad(value), params) / forward
    ours = flops(model, params, vectors) / forward
    return dict(zip(METHODS, (ours, gradient, gradient)))


def sent(config: Config) -> str:
    """A table of the numbers that a step exchanges on 1 to 8 devices."""
    size = sum(map(math.prod, SHAPES))
    rows = []
    for method, devices in itertools.product(METHODS, (1, 2, 4, HOST_DEVICES)):
        hlo = compiled_step(method, config.k, devices, 64).as_text()
        numbers = [collective.numbers for collective in collectives(hlo)]
        expected = exchanged_numbers(method, size, config.k) if devices > 1 else 0
        row = expected, sum(numbers), len(numbers), max(numbers, default=0)
        rows.append((method, devices, *map("{:,.0f}".format, row)))
    titles = ["method", "devices", "numbers predicted", "numbers counted"]
    titles += ["collectives", "the largest"]
    return study.table(pd.DataFrame(rows, columns=titles))


def predict(config: Config, device: Device) -> pd.DataFrame:
    """Seconds a step of each method, for each size and number of devices."""
    return pd.DataFrame(
        {"parameters": parameters, "devices": devices}
        | {m: step_seconds(m, parameters, devices, config, device) for m in METHODS}
        for parameters, devices in itertools.product(config.parameters, config.devices)
    )


def predicted(config: Config, frame: pd.DataFrame) -> str:
    """Seconds a step, and bytes that a device's share of the exchange has."""
    size = EngFormatter("B")
    exchanged = lambda method: [
        size(4 * exchanged_numbers(method, parameters, config.k) * (devices > 1))
        for parameters, devices in zip(frame.parameters, frame.devices)
    ]
    ratio = frame["SGD"] / frame["FoMoH-KD"]
    columns = {
        "parameters": [f"1e{math.log10(x):.3g}" for x in frame.parameters],
        "devices": frame.devices.map("{:,}".format),
        **{f"{m} [s]": frame[m].map("{:.3g}".format) for m in METHODS},
        "exchanged, FoMoH-KD": exchanged("FoMoH-KD"),
        "exchanged, SGD": exchanged("SGD"),
        "FoMoH-KD steps an SGD step": ratio.map("{:.3g}".format),
    }
    return study.table(pd.DataFrame(columns))


def draw(config: Config, frame: pd.DataFrame) -> plt.Figure:
    """Time a step against devices, and bytes against parameters."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    chosen, styles = config.parameters[::2], {"FoMoH-KD": "-", "SGD": "--"}
    for n, parameters in enumerate(chosen):
        color = plt.get_cmap("viridis")(n / max(1, len(chosen) - 0.5))
        rows = frame[frame.parameters == parameters]
        for method, style in styles.items():
            label = f"{method}, $10^{{{math.log10(parameters):.0f}}}$"
            left.plot(rows.devices, rows[method], style, color=color, label=label)
    left.set(xlabel="devices", ylabel="seconds a step")
    left.legend(fontsize=7, ncols=len(chosen))
    for method, style in styles.items():
        sizes = [4 * exchanged_numbers(method, p, config.k) for p in config.parameters]
        right.plot(config.parameters, sizes, style, color="C0", label=method)
    right.set(xlabel="parameters", ylabel="bytes exchanged a step")
    right.legend()
    plt.setp([left, right], xscale="log", yscale="log")
    return figure


def main(config: Config) -> None:
    """Measure, predict, write and print."""
    device = describe_device(config)
    frame = predict(config, device)
    passes = ", ".join(f"{m} {n:.3g}" for m, n in device.passes.items())
    even = EngFormatter("B/s", places=1)(breaking_even(config, device))
    text = (
        f"One device: {device.flops / 1e9:.4g} GFLOP/s, {device.memory / 1e9:.3g} GB/s"
        f", {device.normals / 1e9:.3g}e9 normal numbers a second. Network: "
        f"{config.bandwidth_gb:g} GB/s a device, {config.latency_us:g} µs a message. "
        f"K = {config.k}, {config.examples} examples a device. Forward passes a step, "
        f"as the compiler counts operations: {passes}.\n\nBelow {even} a device, the "
        "step of FoMoH-KD is shorter than that of SGD for many devices and large "
        f"models.\n\nCounted in the compiled program:\n\n{sent(config)}\n\n"
        f"Predicted:\n\n{predicted(config, frame)}"
    )
    study.write(config.out / "scaling", text, scaling=draw(config, frame))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
    main(tyro.cli(Config, description=__doc__))
