"""Several local processes that are started, and ended, together."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

LAUNCHED = "FOMOH_JAX_LAUNCHED"  # in the environment of those that are started here
PATIENCE = 5  # seconds for the others to end by themselves when one has failed
ORPHANED = 60  # seconds for an epoch and a checkpoint when nobody waits for them


def launch(commands: Sequence[Sequence[str]], advice: str) -> None:
    """Run the commands side by side until all of them have ended.

    If one fails, the others, which would wait for it in vain, are ended too. SIGINT and
    SIGTERM are handed on to all. What process 0 prints is seen as it comes, and what
    another one prints if it is the one that failed: when it has lost process 0, that is
    a stack trace of JAX's, which would hide the reason.

    Args:
      commands: of process 0, 1, …
      advice: how to go on, the end of the message about a process that failed.

    Raises:
      SystemExit: if one failed, with which, and how; or if a signal was handed on.
    """
    start = time.monotonic()
    children: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_end, children)
        file = lambda: stack.enter_context(tempfile.TemporaryFile())
        outputs = [None, *(file() for _ in commands[1:])]
        for command, output in zip(commands, outputs):
            children.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # whose end says that this process has ended
                    stdout=output,
                    stderr=output,
                    env=os.environ | {LAUNCHED: "1"},
                    process_group=0,  # Ctrl-C is for this process alone to hand on
                )
            )
        numbers = ", ".join(str(child.pid) for child in children)
        print(f"{len(children)} processes: {numbers}", file=sys.stderr, flush=True)
        with _handed_on(children) as asked:
            failed = _wait(children)
        if asked:
            raise SystemExit(128 + asked[0])
        if failed is None:
            return
        print(file=sys.stderr)  # the end of a progress bar, perhaps
        _print(outputs[failed])
        raise SystemExit(
            f"process {failed} of {len(children)} (id {children[failed].pid}) "
            f"{_how(children[failed].returncode)} after "
            f"{time.monotonic() - start:.0f} s, and the others were stopped. {advice}"
        )


def end_with_launcher() -> None:
    """In a process that :func:`launch` has started: stop when the launcher is gone."""
    if LAUNCHED in os.environ:
        threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock is in the way of a normal end
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHANED)
    os._exit(128 + signal.SIGTERM)


def _wait(children: list[subprocess.Popen]) -> int | None:
    """Until all have ended, or one has failed: which, if one has."""
    with concurrent.futures.ThreadPoolExecutor(len(children)) as pool:
        waits = {pool.submit(child.wait): i for i, child in enumerate(children)}
        for done in concurrent.futures.as_completed(waits):
            if done.result() != 0:
                break
        else:
            return None
        concurrent.futures.wait(waits, timeout=PATIENCE)
        first = waits[done]
        # Of those that failed, one that was killed is the cause, if there is one.
        killed = [
            i
            for i, child in enumerate(children)
            if (child.returncode or 0) < 0 and child.returncode != -signal.SIGABRT
        ]
        for child in children:
            child.kill()
    return killed[0] if killed else first


def _end(children: list[subprocess.Popen]) -> None:
    for child in children:
        child.kill()  # one that has ended is left alone
        child.wait()


def _print(output: IO[bytes] | None) -> None:
    if output is not None:
        output.seek(0)
        print(output.read().decode(errors="replace"), file=sys.stderr, end="")


@contextlib.contextmanager
def _handed_on(children: list[subprocess.Popen]) -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM go to the children, and are noted."""
    asked: list[int] = []

    def hand_on(number, _):
        asked.append(number)
        for child in children:
            child.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals are the main thread's affair
        return
    ours = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, hand_on) for number in ours}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status} (what it said is above)"
