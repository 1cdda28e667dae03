"""What a gallery answers, near-duplicates folded, by rows whose vectors are written down."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest

from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import answer as module
from tiprctl.gallery.searching.answer import Request, answer, patterns

MODEL = ModelIdentity("f00", 3, "float32", "a model", "runs/a")
QUERY = np.array([[1, 0, 0]], np.float32)


def make(vectors, **columns):
    """A gallery of rows /00, /01, ... with these vectors, made to unit length."""
    vectors = np.asarray(vectors, np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    types = {name: values.type for name, values in columns.items()}
    store = GalleryStore.in_memory(
        MODEL, {name: kind for name, kind in types.items() if name not in ("camera", "time")}
    )
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3)
    store.put(pa.table({"path": [f"/{row:03}" for row in range(len(vectors))], **columns, "vector": flat}))
    return store


def paths(hits):
    return [hit.path for hit in hits]


def test_duplicates_that_fill_the_ranking_leave_room_for_the_others():
    store = make([[10, 0, 0.001 * row] for row in range(100)] + [[3, 4, 0], [0, 1, 0], [-1, 0, 0]])
    ((hits, note),) = ((one.hits, one.note) for one in answer(store, QUERY, Request(3, similar=0.99)))
    assert paths(hits) == ["/000", "/100", "/101"]
    assert hits[0].similar == tuple(f"/{row:03}" for row in range(1, 100))
    assert [hit.similar for hit in hits[1:]] == [(), ()]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.6, 0], abs=1e-6)
    assert note is None
    everything = answer(store, QUERY, Request(9, similar=0.99))[0].hits
    assert paths(everything) == ["/000", "/100", "/101", "/102"]


def test_each_query_has_groups_of_its_own():
    store = make([[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0.01, 1, 0]] * 5)
    first, second = answer(store, np.eye(3, dtype=np.float32)[:2], Request(2, similar=0.99))
    assert (paths(first.hits), paths(second.hits)) == (["/000", "/003"], ["/002", "/001"])
    assert len(first.hits[0].similar) == len(second.hits[0].similar) == 9


def test_how_many_are_looked_at_is_bounded_and_told(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 20)
    store = make([[10, 0, 0.001 * row] for row in range(50)] + [[0, 1, 0]])
    (one,) = answer(store, QUERY, Request(2, similar=0.99))
    assert paths(one.hits) == ["/000"]
    assert len(one.hits[0].similar) == 19
    assert "fill the first 20 crops" in one.note


def test_columns_come_as_json_can_hold_them():
    store = make(
        [[1, 0, 0]],
        camera=pa.array(["cam_a"]),
        time=pa.array([datetime(2026, 11, 1, 8, 30, 0, 250)], pa.timestamp("us")),
        ratio=pa.array([float("nan")]),
        day=pa.array([datetime(2026, 11, 1).date()]),
        count=pa.array([3]),
        flag=pa.array([None], pa.bool_()),
    )
    (hit,) = answer(store, QUERY, Request(1))[0].hits
    assert (hit.camera, hit.time) == ("cam_a", "2026-11-01 08:30:00")
    assert hit.columns == {"ratio": None, "day": "2026-11-01", "count": 3, "flag": None}


def test_patterns_stand_for_what_is_below_them_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    assert patterns("crops/a.png") == ("crops/a.png", "crops/a.png/*")
    assert patterns("crops/") == ("crops", "crops/*")
    assert patterns("./crops/*.png") == (
        f"{here}/crops/*.png",
        f"{here}/crops/*.png/*",
        f"{here}/crops/[*].png/*",
    )
    assert patterns("crops/[old]/") == ("crops/[old]", "crops/[old]/*", "crops/[[]old]/*")
    assert patterns("../x") == (f"{here.parent}/x", f"{here.parent}/x/*")
    assert patterns("/") == ("", "/*")
    with pytest.raises(UsageError, match="The pattern is empty"):
        patterns(" ")
