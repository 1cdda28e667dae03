"""Ctrl-C as a question asked between two steps, so that no step is left half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopFlag:
    """True once the user pressed Ctrl-C."""

    def __init__(self) -> None:
        self.raised = False

    def __bool__(self) -> bool:
        return self.raised


@contextmanager
def stop_signal() -> Iterator[StopFlag]:
    """Within the block the first Ctrl-C only raises the flag; a second one interrupts at once."""
    flag = StopFlag()

    def remember(number: int, frame: object) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.raised = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_interrupt(worker: int = 0) -> None:
    """Leave Ctrl-C to the parent process, which stops its workers; run in a worker (of that number) as it starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
