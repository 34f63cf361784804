"""SIGINT and SIGTERM as a request to stop at the next good moment."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator


class Interruption:
    """Whether one was asked for.

    Attributes:
      signal: the number of the signal that came, or ``None``.
    """

    signal: int | None = None


class Stopped(SystemExit):
    """The end of a run that was asked to stop, with all that it needs to go on."""


@contextlib.contextmanager
def postponed() -> Iterator[Interruption]:
    """Inside, the first SIGINT or SIGTERM is noted, and the second ends the process.

    Python runs signal handlers between two bytecodes, which can be a long epoch away.
    So the signals are read in a thread, from what the interpreter writes into a socket
    at once; it is all that the second one needs.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # signals are the main thread's affair
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    thread = threading.Thread(target=_listen, args=(reader, interruption), daemon=True)
    thread.start()
    ours = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in ours}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield interruption
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # ends the thread
        thread.join()
        reader.close()


def _listen(reader: socket.socket, interruption: Interruption) -> None:
    while received := reader.recv(1):
        number = received[0]
        if number not in (signal.SIGINT, signal.SIGTERM):
            continue
        if interruption.signal is not None:
            os._exit(128 + number)
        interruption.signal = number
        print(
            f"\n{signal.Signals(number).name}: stopping after this epoch; "
            "once more to stop at once.",
            file=sys.stderr,
            flush=True,
        )
