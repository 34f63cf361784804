"""The study of deterministic problems: what is kept, and who counts as solving what."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sif2jax import __main__ as study
from experiments.sif2jax import report


def record(problem, method, losses, seconds=1.0):
    return {
        "problem": problem,
        "method": method,
        "steps": len(losses) - 1,
        "variables": 2,
        "places": list(range(len(losses))),
        "losses": losses,
        "seconds_a_step": seconds,
        "compile_seconds": 1.0,
        "environment": "cpu",
    }


def test_losses_are_kept_at_every_step_at_first_and_at_the_last():
    places = study.places_to_keep(500)
    assert places[:21] == list(range(21)) and places[-1] == 500
    assert np.all(np.diff(places) > 0) and len(places) < 70
    assert study.places_to_keep(3) == [0, 1, 2, 3]


def test_a_run_keeps_the_least_loss_so_far():
    halving = study_method(lambda loss, x, state: (-x / 2, state))
    kept = study.run(halving, lambda x: jnp.sum(x**2), jnp.ones(2), 3)
    assert kept["losses"] == [2, 0.5, 0.125, 0.03125] and kept["variables"] == 2
    growing = study_method(lambda loss, x, state: (x * 1e200, state))
    kept = study.run(growing, lambda x: jnp.sum(x**2), jnp.ones(2), 3)
    assert kept["losses"] == [2, 2, 2, 2]


def test_a_failure_of_a_rival_is_recorded_and_any_other_error_is_raised():
    divide = lambda loss, x, state: 1 / 0
    kept = study.run(study_method(divide, ArithmeticError), jnp.sum, jnp.ones(2), 3)
    assert kept == {"error": "ZeroDivisionError: division by zero"}
    for failures in ((), (ValueError,)):
        with pytest.raises(ZeroDivisionError):
            study.run(study_method(divide, *failures), jnp.sum, jnp.ones(2), 3)


def test_a_failure_while_a_rival_runs_is_recorded():
    def fail(x):
        raise ValueError("no descent")

    def step(loss, x, state):
        return jax.pure_callback(fail, x, x), state

    kept = study.run(study_method(step, RuntimeError), jnp.sum, jnp.ones(2), 3)
    assert kept["error"].startswith("JaxRuntimeError: ")


def test_our_methods_may_not_fail():
    pytest.importorskip("optimistix", reason="optimistix is not installed")
    from experiments.sif2jax.methods import METHODS

    may_not = {name for name, method in METHODS.items() if not method.failures}
    assert may_not == {"trust region", "trust region, five radii, scaled"}


def study_method(step, *failures):
    return SimpleNamespace(init=lambda loss, x: (), step=step, failures=failures)


def test_a_problem_is_solved_within_a_share_of_the_best_reduction(tmp_path):
    records = [
        record("A", "trust region", [1.0, 0.5, 0.0], seconds=3.0),
        record("A", "theirs", [1.0, 0.0005, 0.0005]),
        record("B", "trust region", [1.0, 1.0, 0.9]),
        record("B", "theirs", [1.0, 0.1, 0.0]),
        *(
            {"problem": problem, "method": "third", "steps": 2, "error": "no"}
            for problem in "AB"
        ),
        record("C", "theirs", [1.0]),  # which the others have not been run on
    ]
    loose, strict = (report.costs_to(records, t) for t in (1e-3, 1e-6))
    steps = lambda frame: dict(
        zip(zip(frame["problem"], frame["method"]), frame["steps"])
    )
    assert steps(loose)["A", "theirs"] == 1 and steps(strict)["A", "theirs"] == np.inf
    assert (
        steps(strict)["A", "trust region"] == 2
        and steps(strict)["B", "trust region"] == np.inf
    )
    assert ("C", "theirs") not in steps(loose)
    assert steps(strict)["B", "theirs"] == 2 and steps(strict)["B", "third"] == np.inf
    (seconds,) = loose[(loose.problem == "A") & (loose.method == "trust region")][
        "seconds"
    ]
    assert seconds == 6

    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    study.main(["--report", "--results", str(tmp_path)])
    text = (tmp_path / "README.md").read_text()
    assert "- B: theirs" in text and " 1 of 2 |" in text
    assert (tmp_path / "profiles.png").read_bytes()[:4] == b"\x89PNG"


def test_the_methods_minimise():
    pytest.importorskip("optimistix", reason="optimistix is not installed")
    from experiments.sif2jax.methods import METHODS

    def loss(x):
        return jnp.sum((x[1:] - x[:-1] ** 2) ** 2) + jnp.sum((1 - x) ** 2) / 2

    for name, method in METHODS.items():
        kept = study.run(method, loss, jnp.array([-1.0, 2.0, 0.5]), 60)
        assert kept["losses"][-1] < 1e-10, name
