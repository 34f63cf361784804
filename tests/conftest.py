"""Correctness is judged in float64, and sharding on eight devices of the host."""

import jax
from hypothesis import HealthCheck, settings

import fomoh_jax  # noqa: F401  (sets XLA's flags before a test module starts a backend)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("default")


def pytest_collection_modifyitems(items):
    """The long tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: "random" not in item.name)
