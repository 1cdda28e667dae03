import errno
import os

import pytest

from tiprctl.errors import InputError
from tiprctl.files import atomic_path, check_writable, write_text


def test_the_new_content_replaces_the_old(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "old")
    write_text(target, "new ü")
    assert target.read_text(encoding="utf-8") == "new ü"
    assert os.listdir(target.parent) == ["file.txt"]


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_full_disk_is_explained_and_the_old_file_stays_whole(tmp_path, monkeypatch):
    target = tmp_path / "file.txt"
    write_text(target, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as raised:
        write_text(target, "new")
    assert "No space left on device" in str(raised.value)
    assert str(target) in str(raised.value)
    assert "old file" in str(raised.value)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_what_could_not_be_written_is_known_before(tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "deep" / "file.txt"):
        with pytest.raises(InputError, match="Cannot write"):
            check_writable(target)
    check_writable(tmp_path / "new" / "deep" / "file.txt")
    assert os.listdir(tmp_path) == ["file"]
