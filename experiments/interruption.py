"""SIGINT and SIGTERM as a request to stop at the next good moment."""

import contextlib
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def postponed() -> Iterator[list[int]]:
    """A context that notes the first SIGINT or SIGTERM; a second ends the process."""
    came: list[int] = []

    def note(number, _):
        came.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("\nInterrupted: stopping after this epoch.", file=sys.stderr, flush=True)

    handlers = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
