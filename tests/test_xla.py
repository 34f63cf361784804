"""Sums that XLA gets wrong on the CPU: the flag that prevents it, and the check."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fomoh_jax
from fomoh_jax import _xla

FAULTY = _xla.VERSION in _xla.FAULTY
needs_the_fault = pytest.mark.skipif(
    not FAULTY, reason=f"jaxlib {_xla.VERSION} has no fault that could be found"
)
NEWEST = "0.12.0.1"


def run(code: str, **variables: str) -> str:
    """What a fresh process prints, with only these of the variables that matter."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", _xla.OPT_OUT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, env=kept | variables, capture_output=True, text=True, check=True
    )
    return result.stdout


def flags_after(version: str = NEWEST, **environment: str) -> str | None:
    _xla.add_remedy(environment, version)
    return environment.get("XLA_FLAGS")


@pytest.mark.parametrize("version", sorted(_xla.FAULTY))
def test_the_flag_is_added_to_what_is_there(version):
    assert flags_after(version) == _xla.REMEDY
    other = "--xla_force_host_platform_device_count=8"
    assert flags_after(version, XLA_FLAGS=f" {other} ") == f"{other} {_xla.REMEDY}"


@pytest.mark.parametrize("version", [*sorted(_xla.SOUND), "0.10.2", "0.12.1", "1.0.0"])
def test_no_flag_is_added_for_a_jaxlib_that_is_sound_or_not_known(version):
    assert flags_after(version) is None


@pytest.mark.parametrize(
    "flags", [f"{_xla.FLAG}=", f"--xla_dump_to=x {_xla.FLAG}=reduce", "flags.txt"]
)
def test_a_setting_of_the_user_and_a_file_of_flags_are_left_alone(flags):
    assert flags_after(XLA_FLAGS=flags) == flags


def test_the_user_can_opt_out():
    assert flags_after(FOMOH_JAX_XLA_FLAGS="0") is None
    assert flags_after(FOMOH_JAX_XLA_FLAGS="1") == _xla.REMEDY


@pytest.mark.parametrize(
    ("version", "expected"), [("0.12.0", _xla.REMEDY), ("0.13.0", None)]
)
def test_a_plugin_must_know_the_flag_too(version, expected, monkeypatch, tmp_path):
    metadata = tmp_path / "jax_somewhere-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: jax-somewhere\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text("[jax_plugins]\nx = jax_plugins.x\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert flags_after() == expected


def test_libtpu_may_not_know_the_flag(monkeypatch, tmp_path):
    (tmp_path / "libtpu.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert flags_after() is None


def test_this_process_is_sound():
    assert _xla.sums_are_right()
    assert (_xla.REMEDY in os.environ.get("XLA_FLAGS", "")) == FAULTY


@pytest.mark.slow
def test_importing_sets_the_flag_and_starts_no_backend():
    code = """
import os, jax, fomoh_jax
from fomoh_jax import _xla
print(os.environ.get("XLA_FLAGS"), _xla.backend_is_up(), jax.config.jax_num_cpu_devices)
jax.config.update("jax_num_cpu_devices", 2)
print(_xla.backend_is_up(), len(jax.devices()), _xla.backend_is_up())
print(jax.config.jax_num_cpu_devices, _xla.sums_are_right())
"""
    flags = _xla.REMEDY if FAULTY else None
    expected = [f"{flags} False -1", "False 2 True", "2 True"]
    assert run(code).splitlines() == expected


PROGRAM = """
import warnings
import jax, jax.numpy as jnp
import fomoh_jax
from fomoh_jax import _xla

f = lambda x: jnp.sum(jnp.tanh(jax.nn.logsumexp(x[:, None] * jnp.ones((8, 512)), 0)))
x = jnp.linspace(-1, 1, 8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    hessian = jax.jit(fomoh_jax.hessian(f, plan=fomoh_jax.plans.forward()))(x)
right = bool(abs(jnp.trace(hessian) - 10.080537) < 1e-3)
assert right == _xla.sums_are_right()
print(right, *[w.category.__name__ for w in caught], *[w.message for w in caught])
"""
STARTED = "import jax; jax.numpy.ones(3)" + PROGRAM


@pytest.mark.slow
def test_a_program_that_imports_the_library_in_time_is_right():
    assert run(PROGRAM) == "True\n"


@pytest.mark.slow
@needs_the_fault
def test_a_backend_that_was_up_is_found_out_and_the_line_in_the_warning_helps():
    printed = run(STARTED)
    assert printed.startswith("False RuntimeWarning jaxlib") and _xla.LINE in printed
    assert run(f"{_xla.LINE}\n{STARTED}") == "True\n"


@pytest.mark.slow
@needs_the_fault
def test_who_opts_out_has_neither_the_flag_nor_the_warning():
    assert run(PROGRAM, FOMOH_JAX_XLA_FLAGS="0") == "False\n"


@pytest.fixture
def not_trusted(monkeypatch):
    """The check is due in this process, as under a jaxlib that is not known."""
    jax.devices()  # XLA has read its flags
    monkeypatch.setattr(_xla, "VERSION", "99.0")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv(_xla.OPT_OUT, raising=False)
    _xla.warn_if_unsound.cache_clear()
    yield
    _xla.warn_if_unsound.cache_clear()


def cube(x):
    return jnp.sum(x**3)


def everywhere(x):
    """The Laplacian, first called inside vmap, shard_map, scan and jit."""
    inner = lambda c, y: (c, jax.vmap(fomoh_jax.laplacian(cube))(y))
    scanned = lambda x: jax.lax.scan(inner, 0.0, x[None])[1][0]
    return jax.shard_map(scanned, in_specs=P("i"), out_specs=P("i"))(x)


@pytest.mark.parametrize("jitted", [True, False])
def test_the_check_works_in_the_middle_of_a_trace(not_trusted, jitted):
    x = jnp.arange(16.0).reshape(8, 2)
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    with warnings.catch_warnings(), jax.set_mesh(mesh):
        warnings.simplefilter("error")
        trace = (jax.jit(everywhere) if jitted else everywhere)(x)
    np.testing.assert_allclose(trace, 6 * np.sum(x, 1))
    assert _xla.warn_if_unsound.cache_info().currsize == 1


STRICT = {
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_check_tracer_leaks": True,
    "jax_enable_checks": True,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow_explicit",
}


@pytest.mark.parametrize(
    "options",
    [
        STRICT,
        {"jax_disable_jit": True},
        {"jax_enable_x64": False},
        {"jax_default_matmul_precision": "bfloat16"},
    ],
    ids=["strict", "disable_jit", "float32", "bfloat16"],
)
def test_the_check_does_not_depend_on_the_options_of_jax(options):
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        assert _xla.sums_are_right()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_new_jaxlib_is_checked_once_and_the_warning_is_given_once(
    not_trusted, monkeypatch
):
    calls = []
    monkeypatch.setattr(_xla, "sums_are_right", lambda: calls.append(1))
    with pytest.warns(RuntimeWarning, match="wrong numbers") as caught:
        for _ in range(2):
            fomoh_jax.laplacian(cube)(jnp.ones(2))
    assert len(calls) == len(caught) == 1


@pytest.mark.parametrize(
    "reason", ["sound jaxlib", "opted out", "accelerator", "set in time"]
)
def test_the_check_is_left_out_where_its_answer_is_known(
    reason, not_trusted, monkeypatch
):
    monkeypatch.setattr(_xla, "sums_are_right", lambda: pytest.fail("checked"))
    if reason == "sound jaxlib":
        monkeypatch.setattr(_xla, "VERSION", "0.10.1")
    elif reason == "opted out":
        monkeypatch.setenv(_xla.OPT_OUT, "0")
    elif reason == "accelerator":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    else:
        monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x {_xla.REMEDY}")
    fomoh_jax.laplacian(cube)(jnp.ones(2))
