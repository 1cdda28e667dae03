import subprocess

import pytest

from tiprctl.errors import InputError
from tiprctl.runs import RESULT, RUN, Run, git_commit, latest_run, mark_latest, read_json, write_json


def finished_run(folder, finished):
    folder.mkdir(parents=True)
    write_json(folder / RUN, {"config": {}, "dataset": "d", "data_root": "r", "data_fingerprint": "f"})
    write_json(folder / RESULT, {"finished": finished})
    return folder


def test_latest_is_a_link_that_follows_the_last_run(tmp_path):
    first, second = finished_run(tmp_path / "b", "2026-01-01"), finished_run(tmp_path / "a", "2026-01-02")
    for run in (first, second):
        mark_latest(run)
        assert (tmp_path / "latest").resolve() == run.resolve()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "latest"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_or_folder_of_the_users_named_latest_stays(tmp_path, folder):
    run = finished_run(tmp_path / "run", "2026-01-01")
    mine = tmp_path / "latest"
    mine.mkdir() if folder else mine.write_text("mine")
    mark_latest(run)
    assert not mine.is_symlink()
    assert folder or mine.read_text() == "mine"


def test_the_newest_run_is_told_by_its_own_time_and_damaged_ones_are_passed_over(tmp_path):
    finished_run(tmp_path / "a", "2026-01-02")
    finished_run(tmp_path / "b", "2026-01-01")
    (finished_run(tmp_path / "c", "2026-01-03") / RESULT).write_text("{")
    assert latest_run(tmp_path).folder == tmp_path / "a"
    assert latest_run(tmp_path / "a") is None


def test_a_file_in_place_of_a_folder_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot read"):
        _ = Run(tmp_path / "file").info
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "none.json", "", set())


def test_the_commit_is_the_codes_own_not_that_of_the_working_folder(tmp_path, monkeypatch):
    before = git_commit()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert git_commit() == before


def test_code_that_no_repository_tracks_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("tiprctl.__file__", str(tmp_path / "__init__.py"))
    assert git_commit() is None
