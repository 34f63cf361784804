"""What a measurement was taken on: the machine, its rates, the versions."""

import datetime
import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from experiments.benchmarks.measurement import rounded, sample

GEMM_SIZE = 2048  # rows and columns
COPY_SIZE = 2**25  # float32 numbers, 134 MB


def describe() -> dict[str, Any]:
    """Everything that a reader of the numbers wants to know of where they come from."""
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "gemm_gflops": _gemm_gflops(),
        "copy_gb_per_second": _copy_gb_per_second(),
    }


def slug(device: str) -> str:
    """The device kind as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _gemm_gflops() -> float:
    """Of a float32 product of two square matrices."""
    a = jnp.ones((GEMM_SIZE, GEMM_SIZE), jnp.float32)
    product = jax.jit(functools.partial(jnp.matmul, precision="float32"))
    return rounded(2e-9 * GEMM_SIZE**3 / _seconds(lambda: product(a, a)))


def _copy_gb_per_second() -> float:
    """Read and written, by a negation in place, which touches no new page."""
    negate = jax.jit(jnp.negative, donate_argnums=0)
    x = jnp.ones(COPY_SIZE, jnp.float32)

    def call():
        nonlocal x
        x = negate(x)
        return x

    return rounded(2e-9 * x.nbytes / _seconds(call))


def _seconds(call: Callable) -> float:
    """The fastest of a few: a rate is a ceiling."""
    sample(call, 2)
    return min(sample(call, 2) for _ in range(4))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor()


def _commit() -> str | None:
    """Of this file's repository; ``-dirty`` if anything tracked was changed."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
