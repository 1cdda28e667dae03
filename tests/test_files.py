import errno
import os

import pytest

from tiprctl import files
from tiprctl.errors import InputError
from tiprctl.files import atomic_path, being_written, check_writable, sole_writer, spell_bytes, write_text


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


def no_locks(handle, operation):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("locks", ["locks", "no module", "no locks on this disk"])
def test_there_is_one_writer_at_a_time(tmp_path, monkeypatch, locks):
    if locks == "no module":
        monkeypatch.setattr(files, "fcntl", None)
    elif locks == "no locks on this disk":
        monkeypatch.setattr(files.fcntl, "flock", no_locks)
    target = tmp_path / "file.bin"
    with sole_writer(target):
        with pytest.raises(InputError) as caught, sole_writer(target):
            pytest.fail("there are two")
        with sole_writer(tmp_path / "other.bin"):
            pass
        assert os.listdir(tmp_path) == ["file.lock"]
    assert caught.value.what.startswith(f"Another process is writing this file: {os.getpid()} on ")
    assert caught.value.where == str(target)
    assert "remove file.lock" in caught.value.remedy
    with pytest.raises(KeyboardInterrupt), sole_writer(target):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_lock_file_without_its_owner_counts_only_where_files_cannot_be_locked(tmp_path, monkeypatch):
    (tmp_path / "file.lock").write_text("1 on nowhere, and much longer than the next")
    with sole_writer(tmp_path / "file.bin"):
        assert (tmp_path / "file.lock").read_text().startswith(f"{os.getpid()} on ")
        assert "nowhere" not in (tmp_path / "file.lock").read_text()
    (tmp_path / "file.lock").write_text("1 on nowhere")
    monkeypatch.setattr(files, "fcntl", None)
    with pytest.raises(InputError, match="1 on nowhere"), sole_writer(tmp_path / "file.bin"):
        pass


@pytest.mark.parametrize("locks", ["locks", "no module", "no locks on this disk"])
def test_who_is_being_written_is_told_though_a_killed_process_left_its_lock(tmp_path, monkeypatch, locks):
    if locks == "no module":
        monkeypatch.setattr(files, "fcntl", None)
    elif locks == "no locks on this disk":
        monkeypatch.setattr(files.fcntl, "flock", no_locks)
    target = tmp_path / "file.bin"
    assert not being_written(target)
    with sole_writer(target):
        assert being_written(target)
    assert not being_written(target)
    (tmp_path / "file.lock").write_text("1 on nowhere")
    assert being_written(target) == (locks != "locks")


def test_a_lock_that_its_owner_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    lock = tmp_path / "file.lock"
    locked, calls = files._locked, []

    def removed_before_the_first(handle, *, own):
        calls.append(handle)
        if len(calls) == 1:
            lock.unlink()
        return locked(handle, own=own)

    monkeypatch.setattr(files, "_locked", removed_before_the_first)
    lock.touch()
    with sole_writer(tmp_path / "file.bin"):
        assert len(calls) == 2
        assert lock.read_text()


@pytest.mark.parametrize(
    ("count", "spelt"), [(0, "0 kB"), (6144, "6 kB"), (2_400_000, "2 MB"), (2.3e9, "2.3 GB"), (2_314e9, "2,314.0 GB")]
)
def test_a_size_is_told_in_the_unit_that_suits_it(count, spelt):
    assert spell_bytes(int(count)) == spelt
