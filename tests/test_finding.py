"""Finding crops: against a full sort, exactly and through an index, with filters, and where the index is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vector_galleries import MODEL, WIDTH, best, gallery, names, table, unit

from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.engine import EngineError
from tiprctl.gallery.keeping.expression import compiled
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import exact, finding, optimising, vector_index
from tiprctl.gallery.searching.finding import find
from tiprctl.gallery.searching.vector_index import LEAST_RECALL, Tuning

ROWS = 3000


def paths(found) -> list[str]:
    return found.rows["path"].to_pylist()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> GalleryStore:
    return gallery(tmp_path_factory.mktemp("small"), ROWS)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> GalleryStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimising, "EXACT_ROWS", 500)
        store = gallery(tmp_path_factory.mktemp("large"), ROWS)
        done = optimising.optimise(store)
        assert done.index == "built"
        # As thorough as can be: what is tested here is to hold for every index that k-means may give.
        vector_index.write_tuning(store, replace(done.tuning, share=1.0, refine=16))
        store.refresh()
    return store


@pytest.fixture
def through_index(monkeypatch):
    """Galleries of more than 500 rows are searched through their index, and selections of more than 100."""
    monkeypatch.setattr(finding, "EXACT_ROWS", 500)
    monkeypatch.setattr(finding, "_SELECTED_ROWS", 100)


def recall(store: GalleryStore, queries: np.ndarray, found: list, where: str | None = None) -> float:
    ids = exact.search(store, queries, 10, where=where)
    truth = [set(store.take(few, ["path"])["path"].to_pylist()) for few in ids]
    return np.mean([len(true.intersection(paths(one))) / len(true) for true, one in zip(truth, found)])


def test_a_small_gallery_is_ranked_as_by_a_full_sort(small):
    queries = unit(3, seed=1)
    for query, found, rows in zip(queries, find(small, queries, 7), best(queries, unit(ROWS), 7)):
        assert paths(found) == [names(ROWS)[row] for row in rows]
        np.testing.assert_allclose(found.scores, unit(ROWS)[rows] @ query, atol=1e-6)
        np.testing.assert_array_equal(found.vectors, unit(ROWS)[rows])
        assert found.exact and found.note is None
        assert found.rows.column_names == small.columns
        assert found.scores.dtype == np.float32


def test_more_rows_than_there_are_and_none(small, tmp_path):
    found = find(small, unit(1), ROWS + 5)[0]
    assert len(found) == ROWS
    assert sorted(paths(found)) == names(ROWS)
    assert (np.diff(found.scores) <= 0).all()
    assert len(find(small, unit(2), 0)[1]) == 0
    assert find(small, unit(0), 3) == []
    empty = GalleryStore.create(tmp_path / "empty.lance", MODEL)
    assert paths(find(empty, unit(1), 3)[0]) == []


def test_equal_scores_are_in_the_order_of_paths(tmp_path):
    store = GalleryStore.create(tmp_path / "g.lance", MODEL)
    vector = unit(1)
    store.put(table(["/d", "/b", "/a", "/c"], vector.repeat(4, axis=0)))
    store.put(table(["/0", "/z"], np.concatenate([-vector, vector])))
    assert paths(find(store, vector, 3)[0]) == ["/a", "/b", "/c"]
    assert paths(find(store, vector, 6)[0]) == ["/a", "/b", "/c", "/d", "/z", "/0"]


def test_batches_make_no_difference(small, monkeypatch):
    whole = find(small, unit(5, seed=2), 9)
    monkeypatch.setattr(exact, "_BATCH_ROWS", 7)
    monkeypatch.setattr(finding, "_ROWS_AT_ONCE", 10)
    parts = find(small, unit(5, seed=2), 9)
    assert [paths(one) for one in parts] == [paths(one) for one in whole]
    for one, other in zip(parts, whole):
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_least_score_ends_the_ranking(kind, request, through_index):
    store = request.getfixturevalue(kind)
    free = find(store, unit(1), 9)[0]
    least = float(free.scores[4])
    assert paths(find(store, unit(1), 9, min_score=least)[0]) == paths(free)[:5]
    assert paths(find(store, unit(1), 9, min_score=1.1)[0]) == []


@pytest.mark.parametrize("kind", ["small", "large"])
def test_excluded_paths_make_room_for_others(kind, request, through_index):
    store = request.getfixturevalue(kind)
    free = paths(find(store, unit(1), 20)[0])
    assert paths(find(store, unit(1), 5, exclude=free[:3])[0]) == free[3:8]
    assert (
        paths(find(store, unit(1), 5, exclude=["0000?.jpg"])[0])
        == [path for path in free if not path.startswith("/g/0000")][:5]
    )
    assert paths(find(store, unit(1), 5, exclude=["g/*"])[0]) == []


def test_exclusion_reads_paths_and_patterns():
    exclusion = finding.Exclusion(["/a/it's [1].jpg", "cam_b/*", "*.png"])
    assert [
        path
        for path in ("/a/it's [1].jpg", "/x/cam_b/y/z.jpg", "/x/y.png", "s3://b/cam_b/1.jpg")
        if not exclusion(path)
    ] == []
    assert not any(map(exclusion, ["/a/it's 1.jpg.bak", "/x/my_cam_b/y.jpg", "/x/y.png/z.jpg", "/a.jpg"]))


def test_an_index_finds_what_a_full_sort_does(large, through_index):
    for seed in (0, 3):
        queries = unit(200, seed)
        found = find(large, queries, 10)
        assert not any(one.exact for one in found)
        assert recall(large, queries, found) >= 0.98


def test_scores_are_the_same_by_both_ways(large, through_index, monkeypatch):
    queries = unit(20, seed=3)
    through = [dict(zip(paths(one), one.scores)) for one in find(large, queries, 10)]
    monkeypatch.setattr(finding, "EXACT_ROWS", ROWS)
    for scores, one in zip(through, find(large, queries, 10)):
        for path, score in zip(paths(one), one.scores):
            assert scores.get(path, score) == score


@pytest.mark.parametrize(
    "where, exactly",
    [("camera = 'even'", False), ("camera = 'rare'", True), ("time < '2026-11-01 01:00'", True), ("size > 3", True)],
)
def test_filters_lose_nothing(where, exactly, large, through_index):
    queries = unit(30, seed=3)
    found = find(large, queries, 10, where=where)
    assert [one.exact for one in found] == [exactly] * 30
    if where == "size > 3":
        assert all(len(one) == 0 for one in found)
        return
    assert recall(large, queries, found, compiled(large, where)) >= 0.98
    inside = {path for batch in large.scan(["path"], compiled(large, where)) for path in batch["path"].to_pylist()}
    assert all(inside.issuperset(paths(one)) for one in found)


def test_a_gallery_that_has_become_small_is_searched_exactly(large, through_index, monkeypatch):
    assert not find(large, unit(1), 3, where="camera = 'even'")[0].exact
    monkeypatch.setattr(finding, "EXACT_ROWS", ROWS)
    assert find(large, unit(1), 3)[0].exact
    assert find(large, unit(1), 3, where="camera = 'even'")[0].exact


@pytest.fixture
def warmed(monkeypatch):
    """The galleries whose index was read before it was asked for."""
    stores = []
    monkeypatch.setattr(finding, "warm", lambda store, tuning: stores.append(store))
    return stores


def test_an_index_that_will_be_used_is_warmed(large, through_index, warmed):
    finding.warm_up(large)
    assert warmed == [large]


@pytest.mark.parametrize("reason", ["few rows", "many rows", "object store", "too little recall"])
def test_an_index_that_will_not_be_used_or_takes_long_to_read_is_not_warmed(
    large, through_index, warmed, monkeypatch, reason
):
    if reason == "few rows":
        monkeypatch.setattr(finding, "EXACT_ROWS", ROWS)
    elif reason == "many rows":
        monkeypatch.setattr(finding, "_WARMED_ROWS", ROWS - 1)
    elif reason == "object store":
        monkeypatch.setattr(finding, "is_remote", lambda uri: uri == large.uri)
    else:
        monkeypatch.setattr(
            finding, "read_tuning", lambda store: Tuning("an index", ROWS, 54, recall=LEAST_RECALL - 0.01)
        )
    finding.warm_up(large)
    assert warmed == []


def test_a_deep_ranking_is_exact(large, through_index):
    found = find(large, unit(1), 200)[0]
    assert found.exact and len(found) == 200


def test_rows_outside_the_index_are_found(tmp_path, monkeypatch, through_index):
    monkeypatch.setattr(optimising, "EXACT_ROWS", 500)
    store = gallery(tmp_path, 1000)
    optimising.optimise(store)
    new = unit(3, seed=8)
    store.put(table(["/new/a", "/g/00007.jpg", "/new/c"], new))
    assert [paths(one)[0] for one in find(store, new, 2)] == ["/new/a", "/g/00007.jpg", "/new/c"]
    store.remove(["/new/c"])
    assert "/new/c" not in paths(find(store, new[2:], 10)[0])
    # What the row was before it was replaced is gone from the index.
    ranked = find(store, unit(1000)[7:8], 10)[0]
    assert not ranked.exact
    assert paths(ranked).count("/g/00007.jpg") == 0


def damage(store: GalleryStore, column: str) -> None:
    """Cut the files of a column's index in half, and open the gallery anew."""
    segments = next(one.segments for one in store.dataset.describe_indices() if one.field_names == [column])
    for segment in segments:
        for file in Path(store.uri, "_indices", str(segment.uuid)).iterdir():
            os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    "column, where, mended", [("vector", None, "built"), ("camera", "camera = 'even'", "extended")]
)
def test_a_damaged_index_is_done_without_until_it_is_built_anew(
    column, where, mended, tmp_path, monkeypatch, through_index
):
    monkeypatch.setattr(optimising, "EXACT_ROWS", 500)
    store = gallery(tmp_path, 1000)
    whole = find(store, unit(2, seed=4), 5, where=where)
    optimising.optimise(store)
    damage(store, column)
    store = GalleryStore.open(store.uri)
    found = find(store, unit(2, seed=4), 5, where=where)
    assert [paths(one) for one in found] == [paths(one) for one in whole]
    assert all(one.exact and "without the index, which cannot be read" in one.note for one in found)
    assert optimising.optimise(store).index == mended
    assert find(GalleryStore.open(store.uri), unit(1), 5, where=where)[0].note is None


@pytest.mark.parametrize(
    "where, rows",
    [
        ("time < '2026-11-01 00:05'", 5),
        ("time < '2026-11-01T00:05:00'", 5),
        ("time between '2026-11-02' and '2026-11-02 00:09:30' and camera = 'even'", 5),
        ("TIME >= '2026-11-02' and not (time in ('2026-11-02', '2026-11-03'))", 3000 - 1440 - 2),
        ("`time` = '2026-11-02' or time = \"2026-11-02 00:01\"", 2),
        ("time = timestamp '2026-11-02 00:00:00'", 1),
        ("camera = 'time > ''2026-11-01'''", 0),
        ("path = '/g/00000.jpg' -- the first", 1),
        ("path like '%it''s; drop table%'", 0),
    ],
)
def test_strings_are_times_where_times_are_compared(where, rows, small):
    assert small.count(compiled(small, where)) == rows


@pytest.mark.parametrize(
    "where, told",
    [
        ("nope = 3", "No field named nope"),
        ("camera = ", "Expected: an expression"),
        ("camera = 'a' camera = 'b'", "Expected: )"),
        ("camera = 'a'; drop table t", "Expected: )"),
        ("camera", "does not return a boolean"),
        ("time > 'yesterday'", "Error parsing timestamp from 'yesterday'"),
        ("camera in (select path from t)", "not supported"),
        ("", "Expected: an expression"),
        ("1/0 = 1", "Divide by zero"),
        ("cast(camera as int) = 1", "Cast error"),
    ],
)
def test_an_expression_that_cannot_be_read_is_told_in_two_lines(where, told, small):
    with pytest.raises(UsageError) as caught:
        find(small, unit(1), 3, where=where)
    assert told in caught.value.what
    assert len(str(caught.value).splitlines()) == 2
    assert "The columns are path, hash, size, mtime_ns, time, camera" in caught.value.remedy
    assert "an example: \"camera = 'cam_a'" in caught.value.remedy


@pytest.mark.parametrize(
    "where, told",
    [
        ("(" * 5000, "The expression is too long: 5,000 names"),
        ("(camera = 'even'", "parentheses of the expression \"(camera = 'even'\" do not match"),
        ("camera = 'even') or (true", "do not match"),
        ("camera = 'even') or (true /* ( */ -- )(", "do not match"),
        ("\"time\" > '2026-11-01'", '"time" in double quotes is a text, not the column time'),
        ('camera = "Camera"', '"Camera" in double quotes is a text'),
    ],
)
def test_an_expression_that_reads_otherwise_than_it_looks_is_refused(where, told, small):
    with pytest.raises(UsageError) as caught:
        find(small, unit(1), 3, where=where)
    assert told in caught.value.what
    assert caught.value.where == "--where"


def test_parentheses_count_neither_in_texts_nor_in_comments(small):
    assert small.count(compiled(small, "(camera = 'even)') or camera = \"odd(\" -- :)")) == 0
    assert small.count(compiled(small, "(camera /* :( */ = 'even')")) == 1500


def test_a_damaged_gallery_is_not_the_fault_of_an_expression(tmp_path):
    store = gallery(tmp_path, 20)
    for file in Path(store.uri, "data").iterdir():
        file.unlink()
    with pytest.raises(EngineError, match="Not found"):
        find(GalleryStore.open(store.uri), unit(1), 3, where="camera = 'even'")


def test_searching_imports_neither_torch_nor_pandas_and_prints_nothing(large):
    code = f"""
import sys, numpy as np
from tiprctl.gallery.searching import finding
from tiprctl.gallery.keeping.store import GalleryStore
finding.EXACT_ROWS = 500
found = finding.find(GalleryStore.open({large.uri!r}), np.eye(1, {WIDTH}, dtype=np.float32), 3)
print(len(found[0]), found[0].exact, {{"torch", "pandas"}} & set(sys.modules))
"""
    environment = {name: value for name, value in os.environ.items() if name != "LANCE_LOG"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("3 False set()\n", "")
