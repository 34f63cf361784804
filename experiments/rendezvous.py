"""Where the processes of a run find each other, before JAX joins them.

``jax.distributed.initialize`` ends the process, with a stack trace of C++, if another
one does not come or was told something else. So they meet here first: process 0 hears
what each was told, and answers all of them with what is wrong, if anything is.
"""

import contextlib
import json
import re
import socket
import time
from typing import Any

AGREED = "agreed"
LOCAL = ("localhost", "127.0.0.1", "::1")
ADDRESS = re.compile(r"(?:\[([^][]*:[^][]*)\]|([^][:]+)):([0-9]{1,5})")
WEEK = 7 * 24 * 60 * 60  # seconds; sockets wait for three times as long at most
LONGEST = 1 << 20  # characters of what a process says


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
    check_timeout(timeout)
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
    """Host, an IPv6 address without its brackets, and port."""
    parts = ADDRESS.fullmatch(address)
    if parts is None or not 0 < int(parts[3]) < 65536:
        bare = address.count(":") > 1 and "]:" not in address
        raise SystemExit(
            f"--coordinator must be HOST:PORT of process 0; got {address}"
            f"{' (an IPv6 address goes in brackets, as in [::1]:80)' if bare else ''}"
        )
    return parts[1] or parts[2], int(parts[3])


def check_timeout(timeout: float) -> None:
    """A time that can be waited for."""
    if not 0 < timeout <= WEEK:  # not a number is neither
        raise SystemExit(
            f"--start-timeout must be a number of seconds above 0, and at most {WEEK} "
            f"(a week); got {timeout}."
        )


def free_port() -> int:
    """Of this machine, and free a moment ago."""
    with socket.create_server((LOCAL[1], 0)) as server:
        return server.getsockname()[1]


def _wait_for_all(
    address: str, told: dict[str, Any], deadline: float, timeout: float
) -> str:
    """Process 0: hear the others, and give all of them the verdict."""
    host, port = split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server(
            (host if host in LOCAL else "", port), family=family
        )
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
                _forget_those_gone(others)
                verdict = _who_is_missing(address, told, others, timeout)
                break
            heard = _hear(caller)
            if heard is None or _is_gone(caller):  # somebody else, or nobody any more
                caller.close()
                continue
            _forget_those_gone(others)  # this may be the successor of one of them
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
            f"the {processes} its own, from 0 to {processes - 1}; or, if one was cut "
            "off and the other takes its place, start all of them again."
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
        f"{address} within {timeout:g} s, or did not stay. Start every one with this "
        "--coordinator and a --process-id of its own; if one has ended, it says why; "
        "if they need longer, raise --start-timeout."
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
            verdict = _read(caller)
        except (OSError, ValueError):
            verdict = None
    if isinstance(verdict, str):
        return verdict
    return (
        f"process {number} of {processes} was not answered at --coordinator "
        f"{address}: process 0 has ended (see what it says), or waits elsewhere; a run "
        "that is going on takes no further processes."
    )


def _hear(caller: socket.socket) -> dict[str, Any] | None:
    """What a process says; ``None`` if it is no process of ours."""
    caller.settimeout(5)
    try:
        heard = _read(caller)
    except (OSError, ValueError):
        return None
    match heard:
        case {"processes": int(n), "process_id": int(i), "options": dict()} if (
            len(heard) == 3 and 0 < i < n
        ):
            return heard
    return None


def _read(caller: socket.socket) -> Any:
    """What is said in the next line."""
    try:
        return json.loads(caller.makefile().readline(LONGEST))
    except RecursionError:  # of thousands of brackets
        raise ValueError("too deep") from None


def _is_gone(caller: socket.socket) -> bool:
    """The other end is closed. A process that is there says no more until answered."""
    caller.setblocking(False)
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _forget_those_gone(others: dict[int, socket.socket]) -> None:
    for number in [i for i, caller in others.items() if _is_gone(caller)]:
        others.pop(number).close()


def _answer(caller: socket.socket, verdict: str) -> None:
    with caller, contextlib.suppress(OSError):  # it has ended, and will be missed
        caller.settimeout(5)
        caller.sendall(json.dumps(verdict).encode() + b"\n")
