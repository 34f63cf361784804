"""Files of records that processes add to, and that may be killed while they do."""

import multiprocessing

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


def _append_many(file, writer):
    for number in range(100):
        records.append(file, {"writer": writer, "number": number})


def test_processes_that_share_a_file_lose_no_record(tmp_path):
    file, context = tmp_path / "runs.jsonl", multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(file, i)) for i in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = records.by_run(file, lambda record: (record["writer"], record["number"]))
    assert len(found) == len(records.read(file)) == 200
