"""What the remedies for XLA's wrong sums cost, on the least of the rows."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fomoh_jax
from experiments.benchmarks import soundness
from fomoh_jax import _xla
from fomoh_jax._hyperdual import registry
from tests.reference import assert_close, normal


@pytest.mark.slow
def test_the_command_prints_and_writes_a_line_for_each_row(
    capsys, tmp_path, monkeypatch
):
    jax.devices()  # XLA has read its flags
    for name in ("XLA_FLAGS", _xla.OPT_OUT):  # the command sets them for its processes
        monkeypatch.setenv(name, os.environ.get(name, ""))
    rows = "Hessian of a tanh network, D=100, nested"
    soundness.main(soundness.Config(rounds=2, rows=rows, out=tmp_path))
    (table,) = tmp_path.iterdir()
    assert table.read_text() in capsys.readouterr().out
    assert "| nested" not in table.read_text().splitlines()[-1]
    assert rows in table.read_text()
    assert lax.reduce_sum_p not in registry._OF_USERS  # nothing outlives the command


def test_sums_behind_barriers_are_the_same_sums():
    f = lambda x: jnp.sum(jnp.tanh(x[:, None] * normal(3, 4)).sum(0) ** 2)
    x = normal(3)
    expected = fomoh_jax.hessian(f)(x)
    program = lambda: str(jax.make_jaxpr(fomoh_jax.hessian(f))(x))
    assert "optimization_barrier" not in program()
    fomoh_jax.register_rule(jax.lax.reduce_sum_p)(soundness.sum_behind_barrier)
    assert "optimization_barrier" in program()
    assert_close(fomoh_jax.hessian(f)(x), expected)


def test_the_wave_function_is_finite():
    x = jnp.asarray(soundness.workloads.normal(0, 12))
    assert np.isfinite(soundness.wave_function(x, width=8, count=2))
