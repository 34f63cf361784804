"""SIGINT and SIGTERM as a request to stop at the next good moment."""

import contextlib
import signal
import sys
from collections.abc import Iterator

SIGNALS = signal.SIGINT, signal.SIGTERM


class Stopped(SystemExit):
    """The end of a run that was asked to stop, with all that it needs to go on."""


@contextlib.contextmanager
def postponed() -> Iterator[list[int]]:
    """Inside, the first SIGINT or SIGTERM is noted, and the second ends the process."""
    came: list[int] = []

    def note(number, _):
        came.append(number)
        for ours in SIGNALS:
            signal.signal(ours, signal.SIG_DFL)
        name = signal.Signals(number).name
        print(f"\n{name}: stopping after this epoch.", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
