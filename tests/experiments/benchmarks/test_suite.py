"""The benchmark suite, in its quick form and on programs made to fail."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.benchmarks import (
    environment,
    figure,
    hyperplane,
    measurement,
    report,
    tables,
    ways,
    workloads,
)
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.measurement import (
    ADJOINT,
    OURS,
    Contender,
    Limits,
    Row,
    measure,
)
from tests.experiments.benchmarks.test_sparse import HAS_ASDEX
from tests.reference import slow

pytestmark = pytest.mark.optimised

# For each table, the rows to run, the contenders they must have, and a column of each
# of the tables that the report prints of them.
COUNTS = "FLOPs, adjoint ÷ nested"
TABLES = {
    "hyperplane": (
        "MLP tanh k=1 ",
        {"nested jvp", "jet"},
        ("nested ÷ adjoint", COUNTS),
    ),
    "step": ("softmax", {"SGD", "Adam"}, ("Adam ÷ ours",)),
    "operators": ("", {"nested jvp", "jet"}, ("folx ÷ ours", "FLOPs, ours ÷ nested")),
    "gradient": ("", {"jax.grad", "2 blocks"}, ("jax.grad ÷ ours",)),
    "depth": ("unrolled layers=2", {"nested jvp", "gradient"}, ("ours, k=2, MB",)),
    "kinetic": ("solid", {"faster folx", "jax.hessian"}, ("loop ÷ ours",)),
    "pinn": ("gradient", {"jet", "folx"}, ("folx ÷ ours",)),
    "stde": ("sine-Gordon, residual D", {"jet"}, ("jet ÷ ours",)),
    "hessian": ("", {"jax.hessian", ADJOINT}, ("forward plan ÷ ours",)),
    "sparse": (
        "",
        {"asdex", "jax.hessian", "fomoh_jax.hessian"},
        ("jax.hessian ÷ ours", "compile time, ours ÷ jax.hessian"),
    ),
    "width": (
        "k=4",
        {"nested jvp", "fomoh_jax, chunks of 2"},
        ("chunks of 2 ÷ whole", "chunks of 2, MB"),
    ),
    "networks": ("", {"nested jvp"}, ("auto ÷ ours", "nested, compile s")),
}


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Rates of small arrays."""
    monkeypatch.setattr(environment, "GEMM_SIZE", 64)
    monkeypatch.setattr(environment, "COPY_SIZE", 64)


def run(table, rows, out):
    options = ["--quick", "--repeats", "2", "--out", str(out), "--rows", rows]
    main([table, *options])
    (path,) = out.glob(f"{table}-*.json")
    return path


QUICK = "hyperplane", "pinn", "depth"


@pytest.mark.sampled
@pytest.mark.parametrize("table", [x if x in QUICK else slow(x) for x in TABLES])
def test_a_table_is_written_and_reported(table, tmp_path, capsys):
    rows, contenders, columns = TABLES[table]
    path = run(table, rows, tmp_path)
    assert f"-cpu-jax{jax.__version__}-quick" in path.name
    result = json.loads(path.read_text())
    for key in ("cpu", "cores", "platform", "jax", "jaxlib", "device", "date"):
        assert result["environment"][key]
    assert result["environment"]["gemm_gflops"] > 0
    assert result["environment"]["copy_gb_per_second"] > 0
    assert "commit" in result["environment"]
    assert result["config"]["quick"] and result["config"]["repeats"] == 2
    assert result["rows"]
    for row in result["rows"]:
        assert {OURS, *contenders} <= set(row["contenders"])
        for name, record in row["contenders"].items():
            if name == "asdex" and not HAS_ASDEX:
                assert "asdex" in record["error"] or "jax" in record["error"]
                continue
            _check_record(record, ours=name == OURS, timed=table != "depth")
    capsys.readouterr()
    main(["report", str(path), "--figure", str(tmp_path / "figure.png")])
    printed = markdown_tables(capsys.readouterr().out)
    assert len(printed) == len(columns)
    for cells, column in zip(printed, columns):
        assert column in cells and len(cells[column]) == len(result["rows"])
    assert (tmp_path / "figure.png").exists() == (table in ("hyperplane", "depth"))


def markdown_tables(text):
    """The columns of each table, by their titles."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [_columns(block.splitlines()) for block in blocks]


def _columns(lines):
    titles, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
    return dict(zip(titles, zip(*rows)))


def _check_record(record, *, ours, timed):
    assert record["compile_seconds"] > 0 and record["flops"] > 0
    assert record["temporary_bytes"] >= 0
    if timed:
        times = record["seconds"]
        assert 0 < times["lower_quartile"] <= times["median"] <= times["upper_quartile"]
    if not ours:
        assert ("ratio" in record) == timed


def quartiles(median):
    return {"lower_quartile": 0.9 * median, "median": median, "upper_quartile": 2.0}


def hyperplane_result(*, k=2, jax="0.1", **contenders):
    """One row, of which every contender takes a hundred of everything."""
    counts = dict.fromkeys(("flops", "temporary_bytes", "compile_seconds"), 100)
    names = {"ours": OURS, "adjoint": ADJOINT, "nested": "nested jvp"}
    records = {name: counts | contenders.get(key, {}) for key, name in names.items()}
    row = {"workload": "MLP", "sizes": {"k": k}, "contenders": records}
    return {
        "table": "hyperplane",
        "environment": {"device": "cpu", "cpu": "one", "jax": jax},
        "config": {"precision": "float32", "repeats": 9},
        "rows": [row],
    }


def test_times_are_nested_over_ours_and_counts_ours_over_nested():
    result = hyperplane_result(
        ours={"seconds": quartiles(1e-3), "flops": 50},
        adjoint={"temporary_bytes": 25},
        nested={
            "ratio": {"seconds": quartiles(1.5)},
            "seconds_over_adjoint": quartiles(1.8),
        },
    )
    times, counts = markdown_tables(report.markdown(result))
    assert times["ours ms"] == ("1.00",) and times["jet ÷ ours"] == ("–",)
    assert times["nested ÷ ours"] == ("1.50 (1.35–2.00)",)
    assert times["nested ÷ adjoint"] == ("1.80 (1.62–2.00)",)
    assert counts["FLOPs, forward ÷ nested"] == ("0.50",)
    assert counts["FLOPs, adjoint ÷ nested"] == ("1.00",)
    assert counts["temporaries, adjoint ÷ nested"] == ("0.25",)
    assert counts["compile time, forward ÷ nested"] == ("1.00",)


def test_two_versions_are_compared_side_by_side(tmp_path, capsys):
    def timed(forward, adjoint, **options):
        ratios = {
            "ratio": {"seconds": quartiles(forward)},
            "seconds_over_adjoint": quartiles(adjoint),
        }
        return hyperplane_result(nested=ratios, **options)

    results = [
        timed(1.1, 1.5, jax="0.1"),
        timed(1.2, 1.6, jax="0.2"),
        timed(1.3, 1.7, jax="0.2", k=3),
        hyperplane_result(jax="0.2"),  # that only counts is no comparison of times
    ]
    results[-1]["config"]["repeats"] = 0
    paths = [tmp_path / f"{index}.json" for index in range(len(results))]
    for path, result in zip(paths, results):
        path.write_text(json.dumps(result))
    main(["report", *map(str, paths), "--compare"])
    (columns,) = markdown_tables(capsys.readouterr().out)
    medians = {
        title: [cell.split(" ")[0] for cell in cells]
        for title, cells in columns.items()
    }
    assert medians == {
        "workload": ["MLP", "MLP"],
        "k": ["2", "3"],
        "nested ÷ ours, jax 0.1": ["1.10", "–"],
        "nested ÷ ours, jax 0.2": ["1.20", "1.30"],
        "nested ÷ adjoint, jax 0.1": ["1.50", "–"],
        "nested ÷ adjoint, jax 0.2": ["1.60", "1.70"],
    }


def test_what_is_recorded_of_an_error_names_no_path_of_a_machine():
    error = ImportError("cannot import name 'x' from 'a.b' (/some/where/a/b.py)\nmore")
    recorded = measurement.first_line(error)
    assert recorded == "ImportError: cannot import name 'x' from 'a.b'"
    assert measurement.first_line(ValueError("f(x, y)")) == "ValueError: f(x, y)"


def test_a_failing_rival_is_recorded_and_reported(tmp_path, capsys):
    """``jet`` has no rule for what ``relu`` is made of."""
    make = lambda: workloads.mlp((5, 4, 3), 7, jax.nn.relu, jnp.dtype("float32"))
    contenders = lambda: hyperplane.contenders(make, 1)
    row = measure(
        Row("MLP relu", {"k": 1}, contenders, hyperplane.NESTED), Limits(repeats=3)
    )
    assert "seconds" not in row["contenders"]["jet"]
    assert "Error" in row["contenders"]["jet"]["error"]
    assert "\n" not in row["contenders"]["jet"]["error"]
    better = row["contenders"]["nested jvp"]
    candidates = [row["contenders"][name] for name in hyperplane.NESTED["nested jvp"]]
    medians = [candidate["seconds"]["median"] for candidate in candidates]
    assert better["seconds"]["median"] == min(medians)
    path = tmp_path / "hyperplane.json"
    described = {"table": "hyperplane", "environment": environment.describe()}
    result = {**described, "config": {"precision": "float32"}, "rows": [row]}
    path.write_text(json.dumps(result))
    main(["report", str(path)])
    assert "- jet on MLP relu, k = 1: " in capsys.readouterr().out
    for name in ("benchmarks.png", "overview.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_the_overview_is_beside_the_fastest_other_way():
    quartiles = lambda x: {"lower_quartile": x, "median": x, "upper_quartile": x}
    timed = lambda x: {"ratio": {"seconds": quartiles(x)}}
    ours = {"fomoh_jax": {}, "fomoh_jax, auto": timed(0.1)}
    row = {"workload": "", "sizes": {}, "contenders": {**ours, "a": timed(4.0)}}
    assert figure.share_of_fastest(row) == 0.25
    row["contenders"] |= {"b": timed(2.0), "c": {"error": "ImportError"}}
    assert figure.share_of_fastest(row) == 0.5
    result = {"table": "pinn", "config": {}, "rows": [row]}
    on = lambda jax: {**result, "environment": {"device": "cpu", "jax": jax}}
    assert figure._newest([on("0.11.2"), on("0.12.0.1"), on("0.9.2")], "pinn") == [row]
    fewer = {**on("0.12.1"), "rows": [{**row, "contenders": ours}]}
    assert figure._newest([on("0.11.2"), fewer], "pinn") == [row]
    assert figure.draw_overview([fewer | {"table": "other"}]) is None


@pytest.mark.slow
def test_without_repeats_programs_are_counted_and_not_run(tmp_path, capsys):
    wrong = lambda x: x**3 * jnp.nan
    row = measure(one_row(wrong), Limits(repeats=0, temporary_bytes=-1))
    for record in row["contenders"].values():
        assert set(record) == {"compile_seconds", "flops", "temporary_bytes"}
    options = ["--quick", "--repeats", "0", "--rows", "MLP", "--out", str(tmp_path)]
    main(["hyperplane", *options])
    (path,) = tmp_path.glob("hyperplane-*-quick-counts-mlp.json")
    main(["report", str(path)])
    times, counts = markdown_tables(capsys.readouterr().out)
    for title in ("ours ms", "adjoint ms", "nested ÷ ours", "nested ÷ adjoint"):
        assert times[title] == ("–", "–")
    assert all(cell != "–" for column in counts.values() for cell in column)
    assert not (tmp_path / "benchmarks.png").exists()  # there is nothing to draw


def one_row(rival, **options):
    args = (jnp.arange(4.0),)
    made = {OURS: Contender(jnp.square, args), "rival": Contender(rival, args)}
    return Row("square", {"k": 4}, lambda: made, **options)


@pytest.mark.parametrize(
    "rival",
    [
        lambda x: x**2 + 0.1,
        lambda x: x**2 + 0.1j,
        lambda x: x**2 * jnp.nan,
        lambda x: x[:2] ** 2,
    ],
    ids=["other numbers", "an imaginary part", "not finite", "another shape"],
)
def test_disagreeing_numbers_are_refused(rival):
    with pytest.raises(measurement.DisagreementError, match=r"square k=4: .*rival"):
        measure(one_row(rival), Limits(repeats=1))


def test_a_row_has_a_precision_and_a_tolerance_of_its_own():
    def contenders():
        args = (jnp.ones(2, "float64"),)
        assert args[0].dtype == "float64"
        nudged = Contender(lambda x: x**2 + 1e-5, args)
        return {OURS: Contender(jnp.square, args), "nudged": nudged}

    row = functools.partial(Row, "square", {"k": 2}, contenders, double=True)
    with jax.enable_x64(False):
        measure(row(), Limits(repeats=1))
        with pytest.raises(measurement.DisagreementError, match="nudged"):
            measure(row(tolerance=1e-6), Limits(repeats=1))


def test_numbers_that_are_not_compared_must_be_finite_too():
    rival = Contender(lambda x: x / 0, (jnp.ones(2),), agrees=False)
    made = {OURS: Contender(jnp.square, (jnp.ones(2),)), "rival": rival}
    with pytest.raises(measurement.DisagreementError, match="rival gives a non-finite"):
        measure(Row("square", {"k": 2}, lambda: made), Limits(repeats=1))


def test_agreement_is_relative_to_the_largest_element():
    nudge = lambda size: lambda x: x**2 + size * (x == 0)  # the largest is 9
    measure(one_row(nudge(9 * 0.9e-3)), Limits(repeats=1))
    with pytest.raises(measurement.DisagreementError):
        measure(one_row(nudge(9 * 1.1e-3)), Limits(repeats=1))


def test_a_rival_that_is_too_large_is_counted_and_not_run():
    rival = lambda x: jnp.linalg.norm(jnp.sort(x)[::-1] @ jnp.ones((4, 64)))
    record = measure(one_row(rival), Limits(temporary_bytes=0))["contenders"]["rival"]
    assert record["temporary_bytes"] > 0 and record["skipped"]
    assert "seconds" not in record


def test_a_failure_of_ours_is_not_hidden():
    def fails(x):
        raise ValueError("no")

    row = Row("square", {"k": 4}, lambda: {OURS: Contender(fails, (jnp.ones(2),))})
    with pytest.raises(ValueError, match="no"):
        measure(row, Limits())


def test_a_rival_can_be_left_out():
    row = one_row(jnp.square)
    assert tables.Config().kept(row) is row
    kept = tables.Config(without=("rival",)).kept(row)
    assert list(kept.contenders()) == [OURS]


def test_ratios_are_paired_within_a_round(monkeypatch):
    seconds = iter([1.0, 20.0, 5.0]), iter([3.0, 40.0, 10.0])
    clocks: dict = {}  # of ours and of the rival, which are first counted in this order
    count = lambda call: clocks.setdefault(call, seconds[len(clocks)]) and 1
    monkeypatch.setattr(measurement, "calls_per_sample", count)
    sample = lambda call, calls: next(clocks[call])
    monkeypatch.setattr(measurement, "sample", sample)
    record = measure(one_row(jnp.square), Limits(repeats=3))["contenders"]["rival"]
    assert record["ratio"]["seconds"]["median"] == np.median([3, 2, 2])
    assert record["ratio"]["seconds"]["upper_quartile"] == 2.5
    assert record["rounds"] == 3


def test_every_way_gives_the_quadratic_model():
    loss, params, data = workloads.mlp((5, 4, 3), 7, jnp.tanh, jnp.dtype("float64"))
    directions = workloads.directions(params, 1)
    flat, unflatten = ravel_pytree(params)
    v = ravel_pytree(jax.tree.map(lambda v: v[0], directions))[0]
    fun = lambda flat: loss(unflatten(flat), *data)
    value, gradient = jax.jit(jax.value_and_grad(fun))(flat)
    hessian = jax.jit(jax.hessian(fun))(flat)
    expected = value, (v @ gradient)[None], (v @ hessian @ v)[None, None]
    for way in (
        ways.ours,
        ways.nested,
        ways.nested_pairs,
        ways.forward_over_reverse,
        ways.taylor,
    ):
        model = jax.jit(way(loss))(params, directions, *data)
        for a, b in zip(jax.tree.leaves(model), expected):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_a_name_that_no_row_has_is_said(tmp_path, capsys):
    main(["step", "--quick", "--rows", "nonsense", "--out", str(tmp_path)])
    assert "no row for --rows 'nonsense'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_table_without_a_batch_is_not_measured_as_a_scaled_one(tmp_path, capsys):
    main(["sparse", "--quick", "--scale", "2", "--out", str(tmp_path)])
    assert "no row for --rows '' --scale 2" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
