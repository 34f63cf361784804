"""The machine of a measurement, its rates and the versions of the software."""

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
    """The conditions of a measurement, as they are written to JSON."""
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
        **rates(),
    }


def slug(device: str) -> str:
    """The device kind as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def rates() -> dict[str, float]:
    """The rates of a product of two square matrices, and of a negation in place.

    The negation touches no new page of memory.
    """
    a = jnp.ones((GEMM_SIZE, GEMM_SIZE), jnp.float32)
    product = jax.jit(functools.partial(jnp.matmul, precision="float32"))
    negate = jax.jit(jnp.negative, donate_argnums=0)
    x = jnp.ones(COPY_SIZE, jnp.float32)

    def copy():
        nonlocal x
        x = negate(x)
        return x

    operations, size = GEMM_SIZE**3, x.nbytes
    return {
        "gemm_gflops": rounded(2e-9 * operations / fastest(lambda: product(a, a))),
        "copy_gb_per_second": rounded(2e-9 * size / fastest(copy)),
    }


def fastest(call: Callable) -> float:
    """Seconds of the fastest of a few calls: a rate is a ceiling."""
    sample(call, 2)
    return min(sample(call, 2) for _ in range(4))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def _commit() -> str | None:
    """The commit of this repository; ``-dirty`` if a tracked file was changed."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    described = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return described.stdout.strip() or None
