"""Several processes do what one does, and say what is wrong when one is not there."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments import data, digits, launcher, methods, parallel, rendezvous
from experiments.models import MODELS
from experiments.training import make_epoch, train
from tests.experiments.test_resume import (
    ROOT,
    assert_same_results,
    flags,
    folder_of,
    lines,
    results,
    wait_until,
)
from tests.experiments.test_training import blobs

# 4 steps an epoch, 6 epochs; a checkpoint after each.
OPTIONS = {
    "method": "fomoh_kd",
    "k": 2,
    "data": "synthetic",
    "batch_size": 16,
    "steps": 24,
    "evaluate_every": 4,
    "checkpoint_every": 4,
}
# On 64 images. At the end of the third epoch a process may be told to end itself, or to
# interrupt the one that started it.
PROGRAM = """
import functools, os, signal
from experiments import data, digits, parallel
data.make_synthetic = functools.partial(data.make_synthetic, (64, 20))
config = digits.parse()
largest, calls = parallel.largest, []
def counting(number):
    calls.append(number)
    deed = os.environ.get(f"DEED_{config.process_id}") if len(calls) == 3 else None
    if deed == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "interrupt":
        os.kill(os.getppid(), signal.SIGINT)
    return largest(number)
parallel.largest = counting
digits.main(config)
"""


@pytest.fixture(scope="module", autouse=True)
def small_runs(tmp_path_factory):
    """The synthetic set, small, in this process and those that it starts."""
    commands = digits.commands

    def small_commands(config, folder):
        return [
            [sys.executable, "-c", PROGRAM, *command[3:]]
            for command in commands(config, folder)
        ]

    with pytest.MonkeyPatch.context() as patch:
        tiny = data.make_synthetic((64, 20))
        patch.setattr(data, "make_synthetic", lambda: tiny)
        patch.setattr(digits, "commands", small_commands)
        cache = tmp_path_factory.mktemp("cache")
        for name, value in {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "JAX_ENABLE_X64": "1",  # as in this process
            "PYTHONPATH": str(ROOT),
        }.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in two processes that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    digits.main(digits.Config(out=out, processes=2, **OPTIONS))
    return folder_of(out)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The same, of which process 1 was killed in the third epoch; and what was said."""
    out = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEED_1", "end")
        with pytest.raises(SystemExit) as error:
            digits.main(digits.Config(out=out, processes=2, **OPTIONS))
    return folder_of(out), error.value.code


def assert_close_results(folder, other):
    records, params = results(folder)
    expected, expected_params = results(other)
    assert [r["step"] for r in records] == [4, 8, 12, 16, 20, 24]
    for record, like in zip(records, expected, strict=True):
        assert record == pytest.approx(like, rel=1e-5, abs=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        params,
        expected_params,
    )


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(whole, tmp_path):
    digits.main(digits.Config(out=tmp_path, **OPTIONS))
    assert_close_results(whole, folder_of(tmp_path))


@pytest.mark.slow
def test_when_one_is_killed_it_is_said_which_and_how_to_go_on(killed, capfd):
    folder, message = killed
    assert message.startswith("process 1 of 2 (id ")
    assert ") was ended by SIGKILL after " in message
    assert message.endswith(f"python -m experiments.digits --resume {folder}")


@pytest.mark.slow
def test_it_goes_on_to_the_same_end_to_the_last_bit(killed, whole, tmp_path):
    folder = shutil.copytree(killed[0], tmp_path / "run")
    before = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(before) == 3
    assert sorted(os.listdir(folder / "checkpoints")) == ["1", "2"]
    digits.main(digits.read_config(folder))
    assert_same_results(folder, whole)
    # It did not start again: the first two have even their old timings.
    after = (folder / "metrics.jsonl").read_text().splitlines()
    assert after[:2] == before[:2] and after[2] != before[2]


@pytest.mark.slow
def test_one_process_can_go_on_where_two_were_stopped(killed, whole, tmp_path):
    folder = shutil.copytree(killed[0], tmp_path / "run")
    digits.main(digits.parse(["--resume", str(folder), "--processes", "1"]))
    assert_close_results(folder, whole)


@pytest.mark.slow
def test_an_interruption_stops_all_after_the_same_epoch(
    whole, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("DEED_0", "interrupt")
    with pytest.raises(SystemExit) as error:
        digits.main(digits.Config(out=tmp_path, processes=2, **OPTIONS))
    assert error.value.code == 128 + signal.SIGINT
    assert "experiments.digits --resume" in capfd.readouterr().err
    monkeypatch.delenv("DEED_0")
    digits.main(digits.read_config(folder_of(tmp_path)))
    assert_same_results(folder_of(tmp_path), whole)


@pytest.mark.slow
def test_without_their_launcher_they_stop_with_a_checkpoint(tmp_path):
    options = OPTIONS | {"batch_size": 500, "steps": 4_000_000}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.digits"),
            *map(str, flags(**options, out=tmp_path, processes=2)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(process, lambda: lines(tmp_path) > 1)
    process.kill()
    # To the end of the last process that can write there; it has waited for the other.
    _, errors = process.communicate(timeout=120)
    assert "SIGTERM: stopping after this epoch" in errors
    assert "Stopped. To go on:\n    python -m experiments.digits --resume" in errors
    assert len(os.listdir(folder_of(tmp_path) / "checkpoints")) >= 2


def test_a_command_that_fails_is_shown_and_ends_the_others(capfd):
    program = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit('why')"
    commands = [[sys.executable, "-c", program, wait] for wait in ("600", "0")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "PATIENCE", 0)
        with pytest.raises(SystemExit, match=r"process 1 of 2 .*status 1 .*Do this\."):
            launcher.launch(commands, "Do this.")
    assert "why" in capfd.readouterr().err


def outcome(address, timeout, told):
    """What a process comes to; here they are threads."""
    try:
        rendezvous.meet(address, *told, timeout)
    except SystemExit as error:
        return error.code


def meet(told, timeout=10, host="localhost"):
    """What each of several processes comes to."""
    address = f"{host}:{rendezvous.free_port()}"
    with concurrent.futures.ThreadPoolExecutor(len(told)) as pool:
        return list(pool.map(lambda one: outcome(address, timeout, one), told))


def meet_after(before, told, timeout):
    """The same, after what ``before`` does with process 0, the first of them."""
    address = f"localhost:{rendezvous.free_port()}"
    with concurrent.futures.ThreadPoolExecutor(len(told)) as pool:
        start = lambda one: pool.submit(outcome, address, timeout, one)
        first = start(told[0])
        before(address)
        others = [start(one) for one in told[1:]]
        return [waiting.result() for waiting in (first, *others)]


def say(address, words):
    """A connection to process 0, which may have yet to begin, that has said this."""
    deadline = time.monotonic() + 30
    while True:
        try:
            caller = socket.create_connection(rendezvous.split(address), timeout=30)
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
    caller.sendall(words.encode() + b"\n")
    return caller


def is_turned_away(caller):
    try:
        return caller.recv(1) == b""
    except ConnectionResetError:
        return True


def come_and_go(address):
    """Process 1 of 3: once a later stranger is turned away, it has been heard."""
    words = json.dumps({"processes": 3, "process_id": 1, "options": {}})
    with say(address, words), say(address, "anything") as stranger:
        assert is_turned_away(stranger)


def test_processes_that_were_told_the_same_meet():
    assert meet([(3, number, {"--k": 2}) for number in (2, 0, 1)]) == [None] * 3


@pytest.mark.parametrize(
    "told, said",
    [
        (
            [(2, 0, {"--k": 2}), (2, 1, {"--k": 3})],
            "process 1 was started with --k 3 (process 0 has 2): start all",
        ),
        (
            [(2, 0, {}), (3, 1, {})],
            "process 1 was started with --processes 3, and process 0 with "
            "--processes 2: give",
        ),
        (
            [(3, 0, {}), (3, 1, {}), (3, 1, {})],
            "two processes were started with --process-id 1: give",
        ),
    ],
)
def test_all_are_told_what_does_not_match(told, said):
    answers = meet(told)
    assert len(set(answers)) == 1 and answers[0].startswith(said)


def test_the_missing_are_named():
    first, second = meet([(3, 0, {}), (3, 2, {})], timeout=0.5)
    assert first == second
    assert "of 3 processes, 1 did not come to process 0 at localhost:" in first
    assert "within 0.5 s" in first and "raise --start-timeout" in first
    (alone,) = meet([(2, 1, {})], timeout=0.2)
    assert "process 1 of 2 has found no process 0 at --coordinator localhost" in alone


def test_the_successor_of_a_process_that_has_gone_takes_its_place():
    told = [(3, 0, {}), (3, 1, {}), (3, 2, {})]
    assert meet_after(come_and_go, told, timeout=30) == [None] * 3


@pytest.mark.parametrize(
    "told, missing", [([(3, 0, {})], "1, 2"), ([(3, 0, {}), (3, 2, {})], "1")]
)
def test_a_process_that_has_gone_is_missing(told, missing):
    answers = meet_after(come_and_go, told, timeout=2)
    assert len(set(answers)) == 1
    assert f"of 3 processes, {missing} did not come to process 0 at" in answers[0]
    assert "within 2 s, or did not stay. Start" in answers[0]


def test_strangers_are_turned_away():
    words = [
        "GET / HTTP/1.0",
        "[" * 100_000,
        "[]",
        '{"processes": 2, "process_id": 1}',
        '{"processes": 2, "process_id": [1], "options": {}}',
        '{"processes": 2, "process_id": "1", "options": {}}',
        '{"processes": null, "process_id": 1, "options": {}}',
        '{"processes": 2, "process_id": 2, "options": {}}',
        '{"processes": 2, "process_id": 1, "options": []}',
    ]

    def intrude(address):
        for word in words:
            with say(address, word) as stranger:
                assert is_turned_away(stranger)

    told = [(2, 0, {}), (2, 1, {})]
    assert meet_after(intrude, told, timeout=30) == [None] * 2


@pytest.mark.parametrize("answer", ["220 ready", '"', "[" * 100_000, "1"])
def test_a_stranger_at_the_address_is_no_process_0(answer):
    with (
        socket.create_server(("localhost", 0)) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        address = f"localhost:{server.getsockname()[1]}"
        waiting = pool.submit(outcome, address, 30, (2, 1, {}))
        with server.accept()[0] as caller:
            caller.sendall(answer.encode() + b"\n")
            assert "process 1 of 2 was not answered" in waiting.result()


def test_processes_meet_at_an_ipv6_address():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert meet([(2, 0, {}), (2, 1, {})], host="[::1]") == [None] * 2


@pytest.mark.parametrize(
    "address, parts",
    [
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_an_address_is_split(address, parts):
    assert rendezvous.split(address) == parts


@pytest.mark.parametrize(
    "address",
    ["", "h", "h:", ":1", "h:0", "h:65536", "h:²", "h:٣", "h:-1", "[h]:1", "[::1]:0"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(SystemExit, match="must be HOST:PORT of process 0; got ") as it:
        rendezvous.split(address)
    assert f"got {address}" in it.value.code


@pytest.mark.parametrize("address", ["::1:80", "[::1:80", "[::1]"])
def test_an_ipv6_address_goes_in_brackets(address):
    with pytest.raises(SystemExit, match=r"got .*1.* \(an IPv6 address goes in"):
        rendezvous.split(address)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 10**12])
def test_a_time_that_cannot_be_waited_for_is_refused(timeout):
    said = rf"--start-timeout must be .* seconds above 0.* got {timeout}\."
    for number in (0, 1):
        with pytest.raises(SystemExit, match=said):
            rendezvous.meet("localhost:1", 2, number, {}, timeout)


def test_the_experiment_asks_for_the_process_that_is_missing(tmp_path):
    coordinator = f"localhost:{rendezvous.free_port()}"
    config = digits.Config(
        out=tmp_path,
        processes=2,
        coordinator=coordinator,
        process_id=0,
        start_timeout=1,
        **OPTIONS,
    )
    with pytest.raises(SystemExit, match="of 2 processes, 1 did not come"):
        digits.main(config)
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_reported():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SystemExit, match=r"cannot listen at .*take another port"):
            rendezvous.meet(address, 2, 0, {}, 1)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"processes": 0}, "--processes must be at least 1"),
        ({"processes": 3}, r"multiple of 3.*; got 16: take 15 or 18\."),
        ({"processes": 32}, r"multiple of 32.*; got 16: take 32\."),
        ({"processes": 2, "process_id": 1}, "--coordinator and --process-id belong"),
        ({"coordinator": "localhost:1", "process_id": 0}, "from 2 on; got 0 and 1"),
        (
            {"processes": 2, "coordinator": "localhost:1", "process_id": 2},
            "from 0 to one less than --processes.* got 2 and 2",
        ),
        (
            {"processes": 2, "coordinator": "localhost", "process_id": 1},
            "must be HOST:PORT of process 0; got localhost",
        ),
        ({"start_timeout": 0}, "--start-timeout must be .* above 0.* got 0"),
        ({"processes": 2, "start_timeout": -1}, "--start-timeout .* got -1"),
    ],
)
def test_options_that_make_no_sense_are_explained(tmp_path, options, said):
    with pytest.raises(SystemExit, match=said):
        digits.main(digits.Config(out=tmp_path, **OPTIONS | options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["sgd", pytest.param("fomoh_kd", marks=pytest.mark.slow)]
)
def test_an_epoch_over_a_mesh_is_the_same_epoch(name):
    model, method = MODELS["softmax"], methods.make_method(name, 0.01, 2)
    ends = [
        list(train(model, method, make_epoch(model, method, 16, mesh), blobs(), 2, 0))
        for mesh in (None, parallel.make_mesh())
    ]
    for alone, over_mesh in zip(*ends):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            (alone.params, alone.losses),
            (over_mesh.params, over_mesh.losses),
        )


def test_another_mesh_is_refused():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("x", "y"))
    method = methods.make_method("fomoh_kd", 0.01, 2)
    with pytest.raises(ValueError, match=r"one axis, 'batch'; it has \('x', 'y'\)"):
        make_epoch(MODELS["softmax"], method, 16, mesh)


def test_what_process_0_has_comes_with_its_types_and_bits():
    tree = {"key": jax.random.key(3), "x": np.float32([-0.0, np.nan, 1e-40])}
    received = parallel.from_first(tree)
    assert received["key"] == tree["key"]
    assert np.asarray(received["x"]).tobytes() == tree["x"].tobytes()
    assert parallel.largest(7) == 7
