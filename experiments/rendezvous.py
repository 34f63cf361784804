"""Where the processes of a run find each other, before JAX joins them.

``jax.distributed.initialize`` ends the process, with a stack trace of C++, if another
one does not come or was told something else. So they meet here first: process 0 hears
what each was told, and answers all of them with what is wrong, if anything is.
"""

import contextlib
import json
import socket
import time
from typing import Any

AGREED = "agreed"
LOCAL = ("localhost", "127.0.0.1")


def meet(
    address: str,
    processes: int,
    process_id: int,
    options: dict[str, Any],
    timeout: float,
) -> None:
    """Return once all processes are there and were told the same.

    Args:
      address: ``host:port`` of process 0.
      processes: how many there are.
      process_id: of this one, from 0 on.
      options: by the names that the user knows them by; values that JSON can hold.
      timeout: seconds until all must be there.

    Raises:
      SystemExit: if they are not, or differ; in each of those that are there. It says
        what to change.
    """
    told = json.loads(
        json.dumps(
            {"processes": processes, "process_id": process_id, "options": options}
        )
    )
    meet_as = _wait_for_all if process_id == 0 else _call
    verdict = meet_as(address, told, time.monotonic() + timeout, timeout)
    if verdict != AGREED:
        raise SystemExit(verdict)


def split(address: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SystemExit(f"--coordinator must be HOST:PORT of process 0; got {address}")
    return host, int(port)


def free_port() -> int:
    """Of this machine, and free a moment ago."""
    with socket.create_server((LOCAL[1], 0)) as server:
        return server.getsockname()[1]


def _wait_for_all(
    address: str, told: dict[str, Any], deadline: float, timeout: float
) -> str:
    """Process 0: hear the others, and give all of them the verdict."""
    host, port = split(address)
    try:
        server = socket.create_server((host if host in LOCAL else "", port))
    except OSError as error:
        return (
            f"process 0 cannot listen at --coordinator {address} "
            f"({error.strerror}); take another port, the same for all processes."
        )
    others: dict[int, socket.socket] = {}
    verdict = AGREED
    with server:
        while verdict == AGREED and len(others) < told["processes"] - 1:
            try:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                caller, _ = server.accept()
            except TimeoutError:
                verdict = _who_is_missing(address, told, others, timeout)
                break
            heard = _hear(caller)
            if heard is None:  # somebody else
                caller.close()
                continue
            if (verdict := _compare(heard, told, others)) != AGREED:
                _answer(caller, verdict)
            else:
                others[heard["process_id"]] = caller
    for caller in others.values():
        _answer(caller, verdict)
    return verdict


def _compare(
    heard: dict[str, Any], told: dict[str, Any], others: dict[int, socket.socket]
) -> str:
    """What is wrong with what another process was told."""
    number, processes = heard["process_id"], told["processes"]
    if heard["processes"] != processes:
        return (
            f"process {number} was started with --processes {heard['processes']}, and "
            f"process 0 with --processes {processes}: give all of them the number of "
            "processes that there are."
        )
    if number in others:
        return (
            f"two processes were started with --process-id {number}: give each of "
            f"the {processes} its own, from 0 to {processes - 1}."
        )
    theirs, ours = heard["options"], told["options"]
    differences = [
        f"{name} {theirs.get(name)} (process 0 has {ours.get(name)})"
        for name in sorted(theirs | ours)
        if theirs.get(name) != ours.get(name)
    ]
    if differences:
        return (
            f"process {number} was started with {', '.join(differences)}: start all "
            "processes with the same."
        )
    return AGREED


def _who_is_missing(
    address: str,
    told: dict[str, Any],
    others: dict[int, socket.socket],
    timeout: float,
) -> str:
    processes = told["processes"]
    missing = [str(i) for i in range(1, processes) if i not in others]
    return (
        f"of {processes} processes, {', '.join(missing)} did not come to process 0 at "
        f"{address} within {timeout:g} s. Start every one with this --coordinator and "
        f"a --process-id of its own; if one has ended, it says why; if they need "
        "longer, raise --start-timeout."
    )


def _call(address: str, told: dict[str, Any], deadline: float, timeout: float) -> str:
    """Another process: tell process 0, and wait for its verdict."""
    number, processes = told["process_id"], told["processes"]
    while True:
        try:
            caller = socket.create_connection(split(address), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                return (
                    f"process {number} of {processes} has found no process 0 at "
                    f"--coordinator {address} within {timeout:g} s ({error}). Start "
                    "process 0, or correct the address; if it needs longer, raise "
                    "--start-timeout."
                )
            time.sleep(0.1)
    with caller:
        caller.settimeout(2 * timeout)  # process 0 may have begun to wait just now
        try:
            caller.sendall(json.dumps(told).encode() + b"\n")
            verdict = caller.makefile().readline().strip()
        except (OSError, UnicodeError):
            verdict = ""
    if verdict.startswith('"'):
        return json.loads(verdict)
    return (
        f"process {number} of {processes} was not answered at --coordinator "
        f"{address}: process 0 has ended (see what it says), or waits elsewhere; a run "
        "that is going on takes no further processes."
    )


def _hear(caller: socket.socket) -> dict[str, Any] | None:
    """What a process says; ``None`` if it is no process of ours."""
    caller.settimeout(5)
    try:
        heard = json.loads(caller.makefile().readline())
        return heard if heard.keys() == {"processes", "process_id", "options"} else None
    except (OSError, ValueError, AttributeError):
        return None


def _answer(caller: socket.socket, verdict: str) -> None:
    with caller, contextlib.suppress(OSError):  # it has ended, and will be missed
        caller.sendall(json.dumps(verdict).encode() + b"\n")
