"""A Ray cluster to work on: one that runs already, or one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from tiprctl.cores import cores
from tiprctl.errors import TiprError, UsageError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
"""Else Ray's native code writes its log into the terminal, and Ray prints on stdout what became of each worker that
died. All of it is in Ray's log files."""

_PATIENCE = 10.0
"""Seconds that a cluster has to take a connection."""


@dataclass(frozen=True)
class Actors:
    """The processes that hold the model: how many, and what each takes of its machine."""

    count: int
    cpus: float
    gpus: int


@contextmanager
def connected(address: str | None = None, *, cpus: int | None = None) -> Iterator[ModuleType]:
    """The module `ray`, connected to the cluster at `address`; to a new one on this machine where that is None.

    Where the process is connected already, that is left as it is.

    Args:
        cpus: how many tasks the new cluster runs at once; None is one a core, and two at the least.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    with _environment(_QUIET), _hushed():
        ray = _imported()
    if ray.is_initialized():
        yield ray
        return
    with _environment(_QUIET), _hushed():
        _start(ray, address, cpus or max(cores(), 2))
    try:
        yield ray
    finally:
        ray.shutdown()


def actors_for(ray: ModuleType, wanted: int | None) -> Actors:
    """The processes that hold the model: one a GPU; without GPUs one a machine, or `wanted` ones of a core each.

    They leave at least half of the cores to the tasks that decode and write, without which nothing goes on.
    """
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    count = wanted or gpus or len(machines)
    share = total["CPU"] / 2 / count
    return Actors(count, min(share, 1.0) if wanted or gpus or share < 1 else int(share), 1 if gpus else 0)


def told_by_worker(error: BaseException) -> TiprError | None:
    """The error of ours that made a worker fail, where it was one; Ray wraps it in text of its own."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, TiprError) else None


def _imported() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("--engine ray needs the package ray", remedy="pip install 'tiprctl[cluster]'.") from error
    return ray


def _start(ray: ModuleType, address: str | None, cpus: int) -> None:
    settings = {"num_cpus": cpus, "include_dashboard": False} if address is None else {"address": address}
    try:
        _knock(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["no answer"])[0]
        raise UsageError(
            f"The Ray cluster cannot be reached: {reason}",
            where=address,
            remedy="Start it (ray start --head), or leave out --address to work on this machine.",
        ) from error
    # The handlers that are left write to files.
    log = logging.getLogger("ray.data")
    log.propagate = False
    log.handlers = [each for each in log.handlers if not isinstance(each, logging.StreamHandler)]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True


def _knock(address: str | None) -> None:
    """Raise an OSError or a ValueError where nobody listens at a cluster's `HOST:PORT`: Ray would wait for minutes."""
    if address not in (None, "auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not port.isdecimal():
            raise ValueError("an address is auto, HOST:PORT or ray://HOST:PORT")
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set these variables of the environment where they are not set, for the time of the block."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _hushed() -> Iterator[None]:
    """Leave out what is written to stderr in the block, also past Python: Ray's native code says that it is told to be
    quiet, and Lance that it does not like the fork that starts it."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere, warnings.catch_warnings(action="ignore"):
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
