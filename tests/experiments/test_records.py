"""Files of records that processes add to, and that may be killed while they do."""

from concurrent.futures import ThreadPoolExecutor

from experiments import records


def test_a_line_that_was_not_finished_is_ignored_and_then_replaced(tmp_path):
    file = tmp_path / "results" / "runs.jsonl"
    assert records.read(file) == []
    records.append(file, {"run": 1})
    for half in ('{"run": {"prob', "{"):
        with file.open("a") as lines:
            lines.write(half)
        assert records.read(file)[-1] == {"run": 1}
        records.append(file, {"run": 1})
    assert file.read_bytes() == 3 * b'{"run": 1}\n'


def test_the_last_record_of_a_run_counts(tmp_path):
    file = tmp_path / "runs.jsonl"
    assert records.by_run(file, len) == {}
    for n, loss in ((1, 0.5), (2, 0.4), (1, 0.3)):
        records.append(file, {"n": n, "loss": loss})
    found = records.by_run(file, lambda record: record["n"])
    assert list(found) == [1, 2] and found[1] == {"n": 1, "loss": 0.3}
    records.replace(file, found.values())
    assert records.read(file) == [*found.values()] and [*tmp_path.iterdir()] == [file]


def test_several_that_add_to_a_file_lose_no_record(tmp_path):
    """Threads, here: a lock is that of an open file, and not of a process."""
    file = tmp_path / "runs.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: records.append(file, {"n": n}), range(400)))
    assert sorted(record["n"] for record in records.read(file)) == [*range(400)]


def test_a_number_that_json_does_not_know_is_null(tmp_path):
    file = tmp_path / "runs.jsonl"
    for loss in (float("nan"), float("inf"), 0.5):
        records.append(file, {"loss": loss, "curve": [(1, loss)], "seed": 1})
    losses = (None, None, 0.5)
    assert records.read(file) == [
        {"loss": loss, "curve": [[1, loss]], "seed": 1} for loss in losses
    ]
    records.replace(file, [{"loss": float("-inf")}])
    assert file.read_text() == '{"loss": null}\n'
