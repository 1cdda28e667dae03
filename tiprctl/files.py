"""Writing files so that a crash or a full disk never damages what was there before."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR, ENOTDIR
from pathlib import Path
from typing import TextIO

from tiprctl.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it when the block ends well.

    The temporary file is flushed to disk before the rename, so `target` holds either its old or its new content,
    whole. When the block raises, the temporary file is removed and `target` stays as it was.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    target = Path(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """A temporary folder beside `target` that replaces it, files only, when the block ends well.

    Everything is flushed to disk before the rename, so `target` holds either its old or its new files, whole; between
    the two it is missing for a moment, since no system exchanges folders. When the block raises, `target` stays.

    Raises:
        InputError: the folder cannot be written, the disk is full, or `target` is a file.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp") as name:
            temporary = Path(name, "new")
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                file.chmod(0o666 & ~_umask())
                _flush(file)
            if target.exists():
                target.rename(Path(name, "old"))
            temporary.rename(target)
            _flush(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error


def write_text(target: str | Path, text: str) -> None:
    """Write `text` to `target` as UTF-8, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(target: str | Path) -> None:
    """Refuse a file that `atomic_path` could not write, before the work that it is to hold; makes no folder.

    Raises:
        InputError: the folder cannot be written or made, or `target` is a folder.
    """
    target = Path(target)
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        folder = next(folder for folder in target.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(target, error) from error


def spell_bytes(count: int) -> str:
    """A file's size before people: 12 kB, 340 MB, 2.3 GB."""
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


@contextmanager
def sole_writer(target: Path) -> Iterator[None]:
    """Within the block no other process is in such a block for the same `target`: who comes second is refused.

    A file beside it, `.lock`, tells who the first is, and is locked. The system takes the lock from a process that is
    killed. Where there are no such locks (Windows, some network file systems) the file itself is the lock, which a
    killed process leaves behind.

    Raises:
        InputError: another process is at it. OSError: the folder cannot be written.
    """
    lock = target.with_suffix(".lock")
    with _acquired(lock, target) as handle:
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {socket.gethostname()}")
        handle.flush()
        try:
            yield
        finally:
            if fcntl is None:
                # There an open file cannot be removed.
                handle.close()
            # Before the lock ends, lest it be another's that is removed.
            lock.unlink(missing_ok=True)


def being_written(target: Path) -> bool:
    """Whether a process is in a `sole_writer` block for `target` just now; it is taken to be where that cannot be told.

    A lock file that a killed process left behind counts only where files cannot be locked.
    """
    try:
        with target.with_suffix(".lock").open(encoding="utf-8") as handle:
            return not _locked(handle, own=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _acquired(lock: Path, target: Path) -> TextIO:
    """The lock file, open and locked."""
    while True:
        try:
            handle, own = lock.open("x+", encoding="utf-8"), True
        except FileExistsError:
            try:
                handle, own = lock.open("r+", encoding="utf-8"), False
            except FileNotFoundError:
                continue
        if not _locked(handle, own=own):
            with handle:
                raise _written_by_another(target, lock, handle.read())
        if lock.exists() and os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
            return handle
        # It was removed by its owner after it had been opened here.
        handle.close()


def _locked(handle: TextIO, *, own: bool) -> bool:
    """Whether this process could lock the file; where files cannot be locked, whether it is this process's `own`."""
    if fcntl is None:
        return own
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return own
    return True


def _written_by_another(target: Path, lock: Path, owner: str) -> InputError:
    return InputError(
        f"Another process is writing this file: {owner or 'one that has just begun'}",
        where=target,
        remedy=f"Wait until it is done. If it runs no more, remove {lock.name} and start again.",
    )


def _cannot_write(target: Path, error: OSError) -> InputError:
    return InputError(
        f"Cannot write: {error.strerror or error}",
        where=target,
        remedy="Free some space or choose a folder that can be written; the old file, if any, is unchanged.",
    )


def _flush(path: Path) -> None:
    """Ask the operating system to put a file or a folder's entries on disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
