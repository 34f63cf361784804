"""Correctness is judged in float64, and sharding on eight devices of the host.

XLA optimises only what is marked ``optimised``: programs whose operations, bytes,
communication or bits are the question, and numbers in less than float64. Elsewhere most
of a test's time would be spent in LLVM on a program that runs once.
``pytest --optimised`` optimises everything.

``pytest --sample 4`` is for a second version of JAX: the tests of what differs between
versions, and one in four of the others. ``pytest -m '' --slow-turn 2/6`` takes, beside
the quick tests, those slow ones whose turn it is.
"""

import collections
import math
import os
import zlib

import jax
import pytest
from hypothesis import HealthCheck, settings

from tests.signatures import check_signatures

check_signatures()
if jax.__version_info__ < (0, 13):  # an unknown flag would end the process
    # Each program is one LLVM module, and not split for cores that other workers use.
    flags = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
# Imported first, fomoh_jax sets XLA's flags before a test module starts a backend.
from fomoh_jax._hyperdual import registry  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("default")

OPTIMISED = pytest.StashKey[bool]()
# What fomoh_jax._compat is for, and what is compiled, sharded or installed.
OF_VERSIONS = (
    *("tests/hyperdual/rules/", "test_interpreter.py", "test_split.py", "test_xla.py"),
    *("test_sharding.py", "test_export.py", "test_readme.py", "test_compat.py"),
)


def pytest_addoption(parser):
    parser.addoption("--optimised", action="store_true", help="optimise every program")
    parser.addoption(
        "--sample",
        type=int,
        default=1,
        metavar="N",
        help="one in N of the tests that depend on no version of JAX",
    )
    parser.addoption(
        "--slow-turn",
        type=lambda turn: tuple(map(int, turn.split("/"))),
        default=(0, 1),
        metavar="T/N",
        help="one in N of the slow tests, others for each T from 0 to N - 1",
    )


@pytest.fixture(autouse=True)
def _users_rules_end_with_the_test(monkeypatch):
    monkeypatch.setattr(registry, "_OF_USERS", dict(registry._OF_USERS))


def is_optimised(item):
    marked = item.get_closest_marker("optimised") is not None
    return marked or item.config.getoption("--optimised")


def is_sampled(item):
    number = zlib.crc32(item.nodeid.encode())
    if item.get_closest_marker("slow"):
        turn, of = item.config.getoption("--slow-turn")
        if number % of != turn:
            return False
    if any(part in item.nodeid for part in OF_VERSIONS):
        return True
    return number % item.config.getoption("--sample") == 0


def leave_out_cases(config, items):
    """Of a test that is ``sampled(n)``, one case in n is quick, or one alone.

    Which one, a hash says: stacked parameters repeat with a period. On a second version
    of JAX, all cases of what depends on it are quick.
    """
    cases = collections.defaultdict(list)
    for item in items:
        depends = any(part in item.nodeid for part in OF_VERSIONS)
        if depends and config.getoption("--sample") > 1:
            continue
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for several in cases.values():
        several.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        n, *_ = *several[0].get_closest_marker("sampled").args, math.inf
        for item in several[max(1, math.ceil(len(several) / n)) :]:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(config, items):
    """The optimised tests first: their programs may serve the others, not vice versa.

    Then the long ones, so that no worker is left alone with one at the end.
    """
    leave_out_cases(config, items)
    left = [item for item in items if not is_sampled(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = filter(is_sampled, items)
    items.sort(key=lambda item: (not is_optimised(item), "random" not in item.name))
    for item in items:
        # What the tests of a module share, such as oracles, one worker computes once.
        module, optimised = item.nodeid.partition("::")[0], is_optimised(item)
        item.add_marker(pytest.mark.xdist_group(f"{module} {optimised}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before the fixtures, of which some compile."""
    optimised = is_optimised(item)
    if optimised and not item.config.stash.get(OPTIMISED, True):
        jax.clear_caches()  # jit does not look at the flag before it reuses a program
    item.config.stash[OPTIMISED] = optimised
    jax.config.update("jax_disable_most_optimizations", not optimised)
