"""A job as torchrun starts it, seen from outside the process group: which process this is, and one last message of all.

Only the environment and torchrun's own store are used here, so that all this works before the processes have met
(`tiprctl.process_group`) and after they have lost each other.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Lock, Thread

HEARD_WITHIN = timedelta(seconds=10)
"""How long a process waits for the one that tells of the job's end; torchrun kills whoever is left 30 seconds later."""

GRACE = 5.0
"""Seconds that a terminated process has for coming to an end by itself."""

_telling = Lock()


class Terminated(BaseException):
    """The process was asked to end by SIGTERM; like KeyboardInterrupt no `Exception`, so that nothing swallows it."""


@dataclass(frozen=True)
class Place:
    """Which process this is of all those of its job, and which of those on its machine; alone: the first of one."""

    process: int = 0
    processes: int = 1
    local: int = 0
    locals: int = 1


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun gave to this process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(environment[name]) for name in names)) if environment.keys() >= set(names) else Place()


def tell_once(tell: Callable[[], object]) -> None:
    """Call `tell` unless another process of the job has told of its end before; returns when one has.

    Whoever comes second waits, since torchrun ends all processes once the first one has left with an error.
    """
    if place().processes == 1:
        tell()
        return
    from torch.distributed import DistError

    with _telling:
        try:
            store, key = _store(), f"tiprctl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/told"
            first = store.add(key, 1) == 1
        except DistError:
            # The store has gone with the process that held it: better told twice than never.
            tell()
            return
        if first:
            tell()
            store.set(key + "/heard", "")
        else:
            _wait(store, key + "/heard")


@contextmanager
def termination(last_word: Callable[[], object]) -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`; after an error it does nothing, so that the error can be told.

    A process that waits on its device for one that is lost never hears of it: after `GRACE` seconds `last_word` is
    called from beside it, and it ends with 1.
    """
    over = Event()
    listening, ringing = socket.socketpair()
    ringing.setblocking(False)

    def raise_in_main(number: int, frame: object) -> None:
        raise Terminated

    def watch() -> None:
        while numbers := listening.recv(1):
            if numbers[0] == signal.SIGTERM and not over.wait(GRACE):
                last_word()
                os._exit(1)

    Thread(target=watch, daemon=True).start()
    handler, descriptor = signal.signal(signal.SIGTERM, raise_in_main), signal.set_wakeup_fd(ringing.fileno())
    try:
        yield
    except BaseException:
        # torchrun sends it, too, to those who are about to tell that another was killed.
        handler = _let_be
        raise
    finally:
        over.set()
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        ringing.close()


def _let_be(number: int, frame: object) -> None:
    """Take no notice of a signal; unlike SIG_IGN, what is started from here does not inherit it."""


def _store():
    """A connection of its own to the store that torchrun, or the first process, keeps."""
    from torch.distributed import TCPStore

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=HEARD_WITHIN)


def _wait(store, key: str) -> None:
    """Wait for a key, but not for ever: who was to set it may have been killed."""
    from torch.distributed import DistError

    try:
        store.wait([key], HEARD_WITHIN)
    except DistError:
        return
