"""Lance, the engine of galleries: loaded without what it does not need, its faults turned into errors that name a
remedy."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from textwrap import shorten
from types import ModuleType

from tiprctl.errors import InputError
from tiprctl.gallery.keeping.places import is_remote

_PLACE = re.compile(r", /\S+\.rs:\d+")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Lance, whose errors have no number, tells that of the system."""
_FULL = "Free some space"
_DENIED = "Give access to it"
_CAUSES = {
    errno.ENOSPC: ("The disk is full", _FULL),
    errno.EDQUOT: ("The disk quota is used up", _FULL),
    errno.EFBIG: ("The system allows no larger file", _FULL),
    errno.EROFS: ("The gallery lies on a disk that is mounted read-only", _DENIED),
    errno.EACCES: ("The system denies access to the gallery", _DENIED),
    errno.EPERM: ("The system denies access to the gallery", _DENIED),
}
"""What the system's errors mean, and what to do."""
_NEWER = ("Please upgrade Lance", "Unknown Lance storage version")
_OTHERS = re.compile(r"commit conflict|contention|too many concurrent|concurrent(ly)? (transaction|modif|creat)", re.I)
_INTERRUPTED = "External error: KeyboardInterrupt"
"""How Lance tells of a Ctrl-C while it hands over rows."""
_GONE = re.compile(r"index not found", re.I)
_KEPT = "what was committed is kept."
WRITABLE = f"{_FULL} or give access to it, then give the same command again: {_KEPT}"
"""The remedy where a gallery cannot be written and nothing tells why."""
UNREADABLE = "Index its images again, or restore it from a backup."
"""The same where it cannot be read."""


class EngineError(InputError):
    """Lance cannot read or write a gallery: damage, a conflict of writers, a full disk, no access."""


class ObstacleError(EngineError):
    """The system, other processes or this program's age stand in the way; the gallery itself is sound."""


class ConflictError(ObstacleError):
    """Other processes changed the gallery meanwhile; what was to be done can be begun anew."""


@cache
def lance() -> ModuleType:
    """The module, which takes half as long to import without pandas.

    pyarrow.dataset asks whether pandas is there, which imports it. Told no, pyarrow asks again when it is to make a
    data frame, and then finds it. Its log is of use to who develops it: warnings are kept from standard error, unless
    LANCE_LOG asks for them.
    """
    os.environ.setdefault("LANCE_LOG", "error")
    with _without("pandas"):
        import lance
    return lance


@contextmanager
def faults(uri: str, remedy: str) -> Iterator[None]:
    """Turn what Lance raises within the block into `EngineError`, about the gallery at `uri`.

    A full or closed disk, other writers and a newer Lance have remedies of their own; all else has `remedy`.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # The errors of pyarrow are among these kinds.
        if _INTERRUPTED in str(error):
            raise KeyboardInterrupt from error
        raise _engine_error(error, uri, remedy) from error
    except BaseException as error:
        # A panic in its native code is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise _engine_error(error, uri, remedy) from error


def brief(error: BaseException) -> str:
    """Lance's message in one line, without the places in its own source that follow it."""
    message = " ".join(_PLACE.split(str(error))[0].split()) or type(error).__name__
    return shorten(message.removeprefix("Invalid user input: ").rstrip("."), 300)


def signs(error: BaseException, uri: str) -> str:
    """Lance's message without the path of the gallery at `uri`, whose words tell nothing of the error."""
    if is_remote(uri):
        address = uri.partition("://")[2].strip("/")
        places = [address, address.partition("/")[2]]
    else:
        places = [os.path.abspath(uri).strip("/")]
    # A path is followed by the file within, or named as such; elsewhere the same words may be Lance's own.
    named = "|".join(rf"{re.escape(place)}(?=/)|(?<=at path ){re.escape(place)}" for place in places if place)
    return re.sub(named, "", str(error)) if named else str(error)


def _engine_error(error: BaseException, uri: str, remedy: str) -> EngineError:
    told = signs(error, uri)
    number = getattr(error, "errno", None) or int((_OS_ERROR.findall(told) or [0])[-1])
    if number in _CAUSES:
        what, first = _CAUSES[number]
        return ObstacleError(what, where=uri, remedy=f"{first}, then give the same command again: {_KEPT}")
    if any(sign in told for sign in _NEWER):
        what = f"The gallery was written by a newer Lance than this program has: {brief(error)}"
        return ObstacleError(what, where=uri, remedy="Upgrade tiprctl: pip install --upgrade tiprctl pylance.")
    if _OTHERS.search(told) or _GONE.search(told):
        what = f"Other processes are writing the gallery, in conflict with this one: {brief(error)}"
        return ConflictError(what, where=uri, remedy=f"Wait until they are done, then give the command again: {_KEPT}")
    return EngineError(f"The gallery's engine failed: {brief(error)}", where=uri, remedy=remedy)


class _Refusal:
    """A finder of modules that finds one of them missing."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Within the block the module cannot be imported, unless it is already, or its dependents are."""
    if module in sys.modules or "pyarrow.dataset" in sys.modules or find_spec(module) is None:
        yield
        return
    refusal = _Refusal(module)
    sys.meta_path.insert(0, refusal)
    try:
        yield
    finally:
        sys.meta_path.remove(refusal)
