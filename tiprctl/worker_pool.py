"""A `map` over helping processes of this one, as for drawing many pictures; a job of torchrun's is another thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

from tiprctl.errors import TiprError
from tiprctl.interrupt import ignore_interrupt


@contextmanager
def process_map(workers: int, *, chunk: int) -> Iterator[Callable]:
    """A `map` over so many processes, `chunk` items at a time; when the block ends, none of them works any more.

    One worker is this process itself. Ctrl-C reaches this process alone.

    Raises:
        TiprError: a process was ended from outside.
    """
    if workers <= 1:
        yield map
        return
    # Fresh processes, since forking a process that runs threads (torch has them) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=ignore_interrupt) as pool:
        try:
            yield partial(pool.map, chunksize=chunk)
        except BrokenProcessPool as error:
            raise TiprError(
                "A process at work was ended from outside, perhaps for want of memory",
                remedy="Free some memory, or work with fewer processes: --workers 1.",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
