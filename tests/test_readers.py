"""The readers of the published data sets and of users' own tables, and what they say of malformed files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiprctl.data.catalog import DATA_SETS, data_set, locate
from tiprctl.data.records import Record, leaves_root
from tiprctl.errors import InputError, UsageError

CUHK = {"split": "train", "captions": ["A man.", "He walks."], "file_path": "cam_a/1.jpg", "id": 1}
RSTP = {"split": "val", "captions": ["A man.", "He walks."], "img_path": "0000_c5_0022.jpg", "id": 0}
FILES = {"cuhk-pedes": "reid_raw.json", "icfg-pedes": "ICFG-PEDES.json", "rstpreid": "data_captions.json"}


def read(name: str, file: Path) -> list[Record]:
    return DATA_SETS[name].read(file)


def failure(name: str, file: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read(name, file)
    assert caught.value.where == str(file)
    assert caught.value.remedy
    return caught.value


def cuhk_failure(folder: Path, **changes: object) -> str:
    """What is said of a file whose second record has these fields changed; None removes one."""
    changed = {key: value for key, value in {**CUHK, **changes}.items() if value is not None}
    file = folder / "reid_raw.json"
    file.write_text(json.dumps([CUHK, changed]))
    what = failure("cuhk-pedes", file).what
    assert what.startswith("Record 1 (counted from 0) ")
    return what


def test_cuhk_pedes(cuhk_root):
    records = read("cuhk-pedes", cuhk_root / "reid_raw.json")
    assert len(records) == 16
    captions = ("A person in a green coat, view 0.", "The man 1 wears green.")
    assert records[0] == Record("train", 1, "imgs/cam_a/001_0.jpg", captions)
    assert records[-1].split == "test"
    assert records[-1].pid == 13


@pytest.mark.parametrize("spelling", ["ICFG-PEDES.json", "ICFG_PEDES.json"])
def test_icfg_pedes_in_both_spellings(tmp_path, spelling):
    file = tmp_path / spelling
    file.write_text(json.dumps([{**CUHK, "captions": ["One."], "processed_tokens": [["one"]]}]))
    assert locate(DATA_SETS["icfg-pedes"], tmp_path) == (tmp_path, file)
    assert read("icfg-pedes", file) == [Record("train", 1, "imgs/cam_a/1.jpg", ("One.",))]


def test_rstpreid(tmp_path):
    (tmp_path / "data_captions.json").write_text(json.dumps([RSTP]))
    expected = Record("val", 0, "imgs/0000_c5_0022.jpg", ("A man.", "He walks."))
    assert read("rstpreid", tmp_path / "data_captions.json") == [expected]


def test_byte_order_mark_and_redundant_path_parts_are_taken(tmp_path):
    file = tmp_path / "reid_raw.json"
    file.write_text(json.dumps([{**CUHK, "file_path": "./cam_a//1.jpg"}]), encoding="utf-8-sig")
    assert read("cuhk-pedes", file)[0].path == "imgs/cam_a/1.jpg"


@pytest.mark.parametrize("key", ["split", "id", "file_path", "captions"])
def test_missing_key(tmp_path, key):
    what = cuhk_failure(tmp_path, **{key: None}, extra=1)
    assert f'has no "{key}"; its keys are ' in what
    assert "extra" in what


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "7"}, 'has text as "id" where a whole number belongs'),
        ({"id": 7.5}, 'has a fraction as "id" where a whole number belongs'),
        ({"id": True}, 'has true as "id" where a whole number belongs'),
        ({"id": 2**63}, 'has a number as "id" that is too large for an identity'),
        ({"captions": "A man."}, 'has text as "captions" where a list belongs'),
        ({"captions": ["A man.", 3]}, 'has a whole number among its "captions" where text belongs'),
        ({"captions": ["\ud83d"]}, 'has broken text among its "captions": half of a two-part character'),
        ({"file_path": ["a.jpg"]}, 'has a list as "file_path" where text belongs'),
        ({"split": "trian"}, 'has "trian" as "split" where one of train, val, test belongs'),
    ],
)
def test_wrong_type_or_value(tmp_path, changes, said):
    assert cuhk_failure(tmp_path, **changes).endswith(said)


@pytest.mark.parametrize("path", ["../secret.jpg", "cam_a/../../x.jpg", "/etc/passwd", "C:\\x.jpg", "..\\x.jpg", ""])
def test_path_that_leaves_the_root(tmp_path, path):
    assert "leaves the data set's folder" in cuhk_failure(tmp_path, file_path=path)


def test_leaves_root_lets_odd_names_pass():
    assert not any(leaves_root(path) for path in ("a..b/c.jpg", "...jpg", "a b/ü.jpg"))
    assert leaves_root("a\0b.jpg")


@pytest.mark.parametrize("name", FILES)
def test_broken_files_are_each_named(tmp_path, name):
    file = tmp_path / FILES[name]
    assert "Cannot read the file: No such file" in failure(name, file).what
    file.write_bytes(b'[{"split": "tr\xe9in"}]')
    assert failure(name, file).what == "The file is not UTF-8: bad byte at 14"
    file.write_text('[{"split": "train",\n "id"')
    assert failure(name, file).what.startswith("The file is not JSON: Expecting ':' delimiter, line 2, column 6")
    file.write_text('{"train": []}')
    assert failure(name, file).what == "The file holds an object, not a list of records"
    file.write_text("[null]")
    assert failure(name, file).what == "Record 0 (counted from 0) is null, not an object"


def test_caption_all_is_recognised_and_explained(tmp_path):
    file = tmp_path / "caption_all.json"
    file.write_text(json.dumps([{"id": 1, "file_path": "a.jpg", "captions": ["A man."]}]))
    assert locate(DATA_SETS["cuhk-pedes"], tmp_path) == (tmp_path, file)
    error = failure("cuhk-pedes", file)
    assert "caption_all.json of the original distribution" in error.what
    assert "reid_raw.json" in error.remedy
    assert "github.com/ShuangLI59" in error.remedy


def test_folder_csv(tmp_path):
    file = tmp_path / "captions.csv"
    file.write_text(
        'pid,path,caption,split,camera\n3,a.jpg,"A man, tall.",train,9\n5,b.jpg,"She ""runs"".",val,9\n'
        "3,a.jpg,Again him.,train,9\n"
    )
    assert read("folder", file) == [
        Record("train", 3, "a.jpg", ("A man, tall.", "Again him.")),
        Record("val", 5, "b.jpg", ('She "runs".',)),
    ]


def test_folder_without_pid_and_split(tmp_path):
    """Each image is a person of its own, and all of it is for testing."""
    file = tmp_path / "captions.csv"
    file.write_text("path,caption\nb.jpg,One.\na.jpg,Two.\nb.jpg,Three.\n")
    assert read("folder", file) == [
        Record("test", 0, "b.jpg", ("One.", "Three.")),
        Record("test", 1, "a.jpg", ("Two.",)),
    ]


def test_folder_json_lines(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text(
        '{"path": "x/a.jpg", "caption": "One.", "pid": 7}\n\n{"path": "b.jpg", "caption": "Two.", "pid": 4}'
    )
    assert read("folder", file) == [Record("test", 7, "x/a.jpg", ("One.",)), Record("test", 4, "b.jpg", ("Two.",))]


@pytest.mark.parametrize(("first", "second", "said"), [("", ', "pid": 0', 'has a "pid"'), (', "pid": 0', "", "has no")])
def test_folder_refuses_a_pid_on_some_rows_only(tmp_path, first, second, said):
    """Else the number given to the one person and the number made up for the other would be the same."""
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"path": "a.jpg", "caption": "x"{first}}}\n{{"path": "b.jpg", "caption": "x"{second}}}\n')
    assert failure("folder", file).what.startswith(f"Line 2 {said}")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, " is too deeply nested"),
        ("9" * 5000, " has a number of too many digits"),
    ],
)
def test_json_beyond_the_parser(tmp_path, value, said):
    record = f'{{"split": "test", "captions": ["x"], "caption": "x", "file_path": "a", "path": "a", "id": {value}}}'
    (tmp_path / "reid_raw.json").write_text(f"[{record}]")
    assert failure("cuhk-pedes", tmp_path / "reid_raw.json").what == f"The file{said}"
    (tmp_path / "a.jsonl").write_text(f"\n{record}")
    assert failure("folder", tmp_path / "a.jsonl").what == f"Line 2{said}"


@pytest.mark.parametrize("digits", [20, 5000])
def test_pid_of_too_many_digits_in_csv(tmp_path, digits):
    file = tmp_path / "a.csv"
    file.write_text(f"path,caption,pid\na.jpg,x,{'9' * digits}\n")
    assert len(failure("folder", file).what) < 100


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "file,caption\n", "The table has no column path; it has file, caption"),
        ("a.csv", "", "The table has no column path and no column caption; it has none"),
        ("a.csv", "path,caption\na.jpg,A man, tall.\n", "Line 2 has more fields than the heading"),
        ("a.csv", "path,caption\na.jpg,x\nb.jpg\n", "Line 3 has fewer fields than the heading"),
        ("a.csv", "path,caption,pid\na.jpg,x,one\n", 'Line 2 has "one" as "pid" where a whole number belongs'),
        ("a.csv", "path,caption,pid\na.jpg,x,\n", 'Line 2 has "" as "pid" where a whole number belongs'),
        ("a.csv", "path,caption\n../a.jpg,x\n", 'Line 2 has "../a.jpg" as "path", which leaves the data set\'s folder'),
        ("a.csv", 'path,caption\na.jpg,"x" y\n', "Line 2 is not CSV: "),
        ("a.jsonl", '{"path": "a.jpg", "caption": "x"}\n{"path"\n', "Line 2 is not JSON: "),
        ("a.jsonl", '{"path": "a.jpg"}\n', 'Line 1 has no "caption"; its keys are path'),
        ("a.jsonl", "3\n", "Line 1 is a whole number, not an object"),
        ("a.jsonl", '{"path": "a.jpg", "caption": "x", "pid": "4"}\n', 'Line 1 has text as "pid"'),
    ],
)
def test_folder_names_the_bad_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    assert failure("folder", tmp_path / name).what.startswith(said)


def test_misspelt_data_set_lists_the_choices():
    assert data_set("CUHK-PEDES").name == "cuhk-pedes"
    with pytest.raises(UsageError, match="no data set named 'chuk-pedes'") as caught:
        data_set("chuk-pedes")
    assert caught.value.remedy.startswith("Did you mean cuhk-pedes?")


def test_locate_takes_the_folder_itself_and_the_folder_that_holds_it(cuhk_root, monkeypatch):
    cuhk = DATA_SETS["cuhk-pedes"]
    found = (cuhk_root, cuhk_root / "reid_raw.json")
    assert locate(cuhk, cuhk_root) == found
    assert locate(cuhk, cuhk_root.parent) == found
    monkeypatch.setenv("TIPRCTL_DATA", str(cuhk_root.parent))
    assert locate(cuhk, None) == found
    monkeypatch.delenv("TIPRCTL_DATA")
    monkeypatch.chdir(cuhk_root.parent)
    cuhk_root.rename(cuhk_root.with_name("cuhk-pedes"))
    Path("data").mkdir()
    Path("cuhk-pedes").rename("data/cuhk-pedes")
    assert locate(cuhk, None) == (Path("data/cuhk-pedes"), Path("data/cuhk-pedes/reid_raw.json"))


@pytest.mark.parametrize("name", ["cuhk-pedes", "icfg-pedes", "rstpreid"])
def test_missing_data_set_says_where_to_get_it_and_how_it_lies(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} is not there") as caught:
        locate(DATA_SETS[name], tmp_path)
    assert caught.value.where == str(tmp_path / DATA_SETS[name].folder)
    assert "github.com/" in caught.value.remedy
    assert f"{FILES[name]} and imgs/ side by side" in caught.value.remedy


def test_own_images_have_no_usual_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.csv").touch()
    assert locate(DATA_SETS["folder"], tmp_path, tmp_path / "mine.csv") == (tmp_path, tmp_path / "mine.csv")


def test_annotation_file_from_elsewhere(tmp_path):
    (tmp_path / "crops").mkdir()
    (tmp_path / "mine.csv").touch()
    folder = DATA_SETS["folder"]
    assert locate(folder, tmp_path / "crops", tmp_path / "mine.csv") == (tmp_path / "crops", tmp_path / "mine.csv")
    with pytest.raises(InputError, match="no such annotation file"):
        locate(folder, tmp_path / "crops", tmp_path / "none.csv")
    with pytest.raises(InputError, match="with captions of your own images"):
        locate(folder, tmp_path / "none", tmp_path / "mine.csv")
