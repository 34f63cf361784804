"""JAX's own one-primitive programs: every group, on this version of jax."""

import jax
import pytest

from tests import coverage

GROUPS = coverage.groups()
FEW = 2


def outcomes(group, count):
    ran = [coverage.run(case) for case in coverage.choose(GROUPS[group], count)]
    return [outcome for outcome in ran if outcome.kind != "no derivative"]


@pytest.mark.parametrize("group", GROUPS)
def test_a_few_cases_of_every_group_agree_with_nested_jvp(group):
    outcomes(group, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_a_dozen_cases_of_every_group_are_as_the_table_says(group):
    ran = outcomes(group, coverage.DOZEN)
    generic = any("generic" in outcome.rules for outcome in ran)
    refused = all(outcome.kind == "refused" for outcome in ran)
    if generic and not refused:
        assert group in coverage.LEFT_TO_THE_GENERIC_RULE
    table = coverage.TABLE.read_text()
    if ran and f"## jax {jax.__version__}\n" in table:
        section = table.split(f"## jax {jax.__version__}\n")[1].split("\n## ")[0]
        assert coverage.row(group, ran) in section.splitlines()


def test_every_group_that_jax_differentiates_is_in_the_table():
    table = coverage.TABLE.read_text()
    for section in table.split("\n## ")[1:]:
        named = {line.split(" | ")[0][2:] for line in section.splitlines()}
        assert {"tanh", "dot_general", "svd", "custom_linear_solve"} <= named
