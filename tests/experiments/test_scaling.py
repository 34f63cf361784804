"""The model of a step over many devices, and the count of what a program sends."""

import dataclasses
import math

import pytest

from experiments import scaling
from experiments.collectives import collectives
from tests.reference import slow

pytestmark = pytest.mark.optimised

HLO = """
HloModule jit_step
ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} all-reduce(%p), replica_groups={}
  %b = (f32[4,2]{1,0}, pred[]) all-reduce(%p, %q), to_apply=%add
  %c = (bf16[2]{0}, bf16[16]{0}) all-gather-start(%p), dimensions={0}
  %d = bf16[16]{0} all-gather-done(%c)
  ROOT %e = f32[8]{0} add(%a, %all-reduce.3)
}
"""
PASSES = {"FoMoH-KD": 60.0, "SGD": 3.0, "Adam": 3.0}
DEVICE = scaling.Device(flops=1e10, memory=1e10, normals=1e8, passes=PASSES)
SLOW = scaling.Config(bandwidth_gb=1e-3, latency_us=1e3)


def test_collectives_are_read_with_the_numbers_that_they_send():
    found = collectives(HLO)
    assert found == [
        ("all-reduce", [(8,)]),
        ("all-reduce", [(4, 2), ()]),
        ("all-gather", [(16,)]),
    ]
    assert found[1].numbers == 9


def test_an_all_reduce_is_bound_by_latency_or_by_bandwidth():
    assert scaling.all_reduce_seconds(1e9, 1, SLOW) == 0
    # A few numbers go up and down a tree.
    few = scaling.all_reduce_seconds(1, 64, SLOW)
    assert few == pytest.approx(2 * 6 * 1e-3, rel=0.01)
    # Many go twice round a ring, in parts.
    many = scaling.all_reduce_seconds(1e9, 64, SLOW)
    assert many == pytest.approx(2 * 63 / 64 * 4e9 / 1e6, rel=0.01)


@pytest.mark.parametrize("method", [slow("FoMoH-KD"), "SGD"])
def test_the_numbers_exchanged_are_those_of_the_compiled_program(method):
    found = collectives(scaling.compiled_step(method, 3, 8, 16).as_text())
    size = sum(map(math.prod, scaling.SHAPES))
    expected = scaling.exchanged_numbers(method, size, 3)
    # Numbers for deferred directions to wait for, and the loss that SGD lacks.
    assert abs(sum(c.numbers for c in found) - expected) <= 4


def test_at_the_bandwidth_of_breaking_even_the_steps_are_equally_long():
    config = scaling.Config(latency_us=0)
    bandwidth = scaling.breaking_even(config, DEVICE)
    even = dataclasses.replace(config, bandwidth_gb=bandwidth / 1e9)
    ours, sgd = (
        scaling.step_seconds(method, 1e9, 4096, even, DEVICE)
        for method in ("FoMoH-KD", "SGD")
    )
    assert ours == pytest.approx(sgd, rel=1e-3)


def test_the_study_writes_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "counted", lambda k: PASSES)
    monkeypatch.setattr(scaling, "sent", lambda config: "")
    given = {"gflops": 1.0, "memory_gb": 1.0, "normals": 0.1}
    scaling.main(scaling.Config(out=tmp_path, parameters=(1e6,), **given))
    folder = tmp_path / "scaling"
    assert " 4,096 |" in (folder / "table.md").read_text()
    assert (folder / "scaling.png").stat().st_size > 0
