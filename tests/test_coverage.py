"""JAX's own one-primitive programs: every group, on this version of jax."""

import jax
import pytest

from tests import coverage
from tests.reference import partly_slow

GROUPS = coverage.groups()
FEW = 1

# Groups with cases that jax, one version or the other, does not differentiate twice.
NOT_ALL_TWICE = {
    *("clamp", "eig", "igamma", "igammac", "nextafter", "reduce", "reduce_max"),
    *("reduce_min", "reduce_window_add", "reduce_window_max", "reduce_window_min"),
    *("reduce_window_mul", "regularized_incomplete_beta", "scatter_mul", "svd"),
}


def outcomes(group, count):
    ran = [coverage.run(case) for case in coverage.choose(GROUPS[group], count)]
    return [outcome for outcome in ran if outcome.kind != "no derivative"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("group", partly_slow(GROUPS))
def test_a_few_cases_of_every_group_agree_with_nested_jvp(group):
    kinds = {outcome.kind for outcome in outcomes(group, FEW)}
    assert kinds <= {"agrees"} or group in NOT_ALL_TWICE


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_the_cases_of_every_group_are_as_the_table_says(group):
    ran = outcomes(group, coverage.most(group))
    generic = any("generic" in outcome.rules for outcome in ran)
    refused = all(outcome.kind == "refused" for outcome in ran)
    if generic and not refused:
        assert group in coverage.LEFT_TO_THE_GENERIC_RULE
    table = coverage.TABLE.read_text()
    if ran and f"## jax {jax.__version__}\n" in table:
        section = table.split(f"## jax {jax.__version__}\n")[1].split("\n## ")[0]
        assert coverage.row(group, ran) in section.splitlines()


def test_the_table_has_a_line_for_every_group_of_floating_point_numbers():
    sections = coverage.TABLE.read_text().split("\n## ")[1:]
    assert len(sections) >= 2
    integers = {"and", "not", "or", "xor", "iota", "iota_2x32_shape", "reduce_and"}
    integers |= {"population_count", "random_randint", "random_split", "reduce_or"}
    integers |= {"random_uniform", "rng_bit_generator", "shift_left"}
    integers |= {"shift_right_arithmetic", "shift_right_logical"}
    for section in sections:
        named = {line.split(" | ")[0][2:] for line in section.splitlines()}
        if section.startswith(f"jax {jax.__version__}\n"):
            assert set(GROUPS) - integers <= named
