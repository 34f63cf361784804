"""The flag that keeps XLA's wrong sums on the CPU away, and the check that finds them.

jaxlib 0.10.2 and later rewrite ``sum(a * b, axis)`` on the CPU into a matrix product of
a library (YNNPACK). In float32 and bfloat16, where neither factor varies along some
dimension of the result, that product reads past the end of the smaller factor: the
numbers are wrong, differ from run to run, and nothing says so. Derivatives along many
directions contain many such sums, and so do users' own programs.

Which jaxlib has the fault was found by running :func:`sums_are_right` under each. All
that have it know the flag, on every platform (an unknown flag would end the process).

Why this remedy (``python -m experiments.benchmarks.soundness``, jaxlib 0.12.0.1): the
flag, the same flag emptied (no YNNPACK at all), and an ``optimization_barrier`` before
every sum that a linear rule emits, all cost nothing that stands out of the noise: with
this one the programs that it changes take 0.86 to 1.11 of the time without any. The
barrier leaves users' own sums, and JAX's derivative of ``max``, wrong; the emptied flag
gives up matrix products and convolutions that are not at fault.
"""

import concurrent.futures
import functools
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import MutableMapping

import jax
import jaxlib.version
import numpy as np
from jax import lax

VERSION = jaxlib.version.__version__
# jaxlib 0.10.2 has the fault as well, and is refused for another one (_compat.py).
SOUND = frozenset({"0.10.0", "0.10.1"})
FAULTY = frozenset({"0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"})

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
REMEDY = f"{FLAG}=-reduce"  # all of the default but the rewrite of sums
OPT_OUT = "FOMOH_JAX_XLA_FLAGS"
LINE = (
    "import os; os.environ['XLA_FLAGS'] = "
    f"os.environ.get('XLA_FLAGS', '') + ' {REMEDY}'"
)


def add_remedy(environment: MutableMapping[str, str], version: str) -> None:
    """Appends the flag to ``XLA_FLAGS``, if that is known to be safe.

    XLA reads the variable once, when it compiles or starts a backend for the first
    time, and processes started from this one inherit it.

    Args:
      environment: ``os.environ``.
      version: of jaxlib.
    """
    flags = environment.get("XLA_FLAGS", "").strip()
    names_a_file = bool(flags) and not flags.startswith("-")
    if (
        version in FAULTY
        and not opted_out(environment)
        and FLAG not in flags
        and not names_a_file
        and not _another_compiler_reads_the_flags()
    ):
        environment["XLA_FLAGS"] = f"{flags} {REMEDY}".lstrip()


def opted_out(environment: MutableMapping[str, str]) -> bool:
    """Whether the user wants neither the flag nor the check."""
    return environment.get(OPT_OUT, "") == "0"


def backend_is_up() -> bool:
    """Whether JAX has started a backend, which is when XLA has read its flags.

    The number of CPU devices cannot be changed any more after that, and JAX has no
    other public way to ask. A backend is not started by asking.
    """
    name = "jax_num_cpu_devices"
    devices = getattr(jax.config, name)
    # Every negative number means the default, so that nothing changes in between.
    other = devices - 1 if devices < 0 else -1
    try:
        jax.config.update(name, other)
    except RuntimeError:
        return True
    jax.config.update(name, devices)
    return False


def sums_are_right() -> bool:
    """Compiles a sum that the fault spoils, and compares it with NumPy: 0.05 s.

    In a thread of its own, so that neither a trace that is going on nor a mesh, a
    default device or an option of the caller has a part in it.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_compare_sum).result()


@functools.cache
def warn_if_unsound() -> None:
    """Warns once, before the first transformation, if sums are wrong in this process.

    The check is left out where its answer is known: under a jaxlib without the fault,
    and where the flag was there before the backend, as it is wherever this library was
    imported in time. It is made under every jaxlib that is newer than those known.
    """
    trusted = REMEDY in os.environ.get("XLA_FLAGS", "").split() and not _TOO_LATE
    if VERSION in SOUND or trusted or opted_out(os.environ):
        return
    if jax.default_backend() == "cpu" and not sums_are_right():
        warnings.warn(_MESSAGE, RuntimeWarning, stacklevel=2)


_MESSAGE = (
    f"jaxlib {VERSION} returns wrong numbers on the CPU in this process: "
    "float32 and bfloat16 sums over products under jit, in plain JAX and in what "
    "fomoh_jax computes. fomoh_jax sets the flag of XLA that prevents it, unless it is "
    "imported when JAX has already run something, or XLA_FLAGS may not be changed. "
    "Import fomoh_jax earlier, or put this line before the first import of jax: "
    f"{LINE} (a jaxlib that does not know the flag stops with an error). "
    f"{OPT_OUT}=0 in the environment silences this warning."
)


def _another_compiler_reads_the_flags() -> bool:
    """Whether a plug-in is installed that may not know the flag.

    Each has an XLA of its own, which reads ``XLA_FLAGS`` and ends the process on a flag
    that it does not know. Those of CUDA and ROCm are built from the same sources as the
    jaxlib of the same version; libtpu is released on its own.
    """
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    versions = {plugin.dist.version for plugin in plugins if plugin.dist}
    return not versions <= FAULTY or importlib.util.find_spec("libtpu") is not None


def _compare_sum() -> bool:
    shape = (12, 10, 40)  # a product of 4,096 elements or more is rewritten
    a = np.arange(120, dtype=np.float32).reshape(shape[:2])
    b = np.arange(1, 11, dtype=np.float32)

    def every_column_alike(a, b):
        spread = lax.broadcast_in_dim(a, shape, (0, 1))
        return lax.reduce_sum(spread * lax.broadcast_in_dim(b, shape, (1,)), (1,))

    # Settings of the whole process do not count: a NaN is an answer here, no error.
    with (
        jax.disable_jit(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.transfer_guard("allow"),
    ):
        # Compiled ahead of time: no entry in the caches of the dispatch.
        sums = jax.jit(every_column_alike).lower(a, b).compile()(a, b)
        # Some columns may be right: the sums are integers, and all must be exact.
        return np.array_equal(np.asarray(sums), np.tile((a @ b)[:, None], shape[2]))


_TOO_LATE = backend_is_up()
add_remedy(os.environ, VERSION)
