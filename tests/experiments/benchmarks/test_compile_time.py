"""What can be counted of the time that a compilation takes: the program's length."""

import jax
import pytest

from experiments.benchmarks import compile_time
from tests.reference import assert_close, slow

pytestmark = pytest.mark.optimised


@pytest.mark.parametrize("name", [slow("unrolled"), "jitted", slow("scanned")])
def test_the_program_is_at_most_half_as_long_again_as_nested_jvp(name):
    loss, params = compile_time.networks(24)[name]
    lines = lambda transform: len(
        compile_time.lowered(transform, loss, params, 4).as_text().splitlines()
    )
    assert lines(compile_time.ours) <= 1.5 * lines(compile_time.nested)


@pytest.mark.slow
def test_a_jitted_layer_is_staged_a_few_times_and_not_once_a_call():
    def length(layers):
        loss, params = compile_time.networks(layers)["jitted"]
        lowered = compile_time.lowered(compile_time.ours, loss, params, 2)
        return lowered.as_text().count("stablehlo.dot_general")

    assert length(12) == length(6)


@pytest.mark.slow
def test_the_networks_are_one():
    x = jax.random.normal(jax.random.key(1), (2, 8, 32))
    values = [loss(params, x) for loss, params in compile_time.networks(3).values()]
    assert_close(values[1:], values[:1] * 2)


@pytest.mark.slow
def test_the_command_prints_a_line_for_each(capsys):
    compile_time.main(compile_time.Config(layers=1, k=1, repeats=1))
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in ("unrolled", "jitted", "scanned"))
