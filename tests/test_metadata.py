"""What paths, pictures and tables tell of a crop."""

from __future__ import annotations

import re
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import ExifTags, Image

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.filling.embedding import ReadImage
from tiprctl.gallery.filling.listing import ImageFile
from tiprctl.gallery.filling.metadata import EXIF, Describer, MetadataTable
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.keeping.places import key_of
from tiprctl.images import exif_time


def photograph(taken: str | None, offset: str | None = None) -> bytes:
    """A JPEG with this DateTimeOriginal."""
    picture, target = Image.new("RGB", (4, 8)), BytesIO()
    exif = Image.Exif()
    facts = exif.get_ifd(ExifTags.IFD.Exif)
    facts |= {ExifTags.Base.DateTimeOriginal: taken} if taken else {}
    facts |= {ExifTags.Base.OffsetTimeOriginal: offset} if offset else {}
    exif[ExifTags.IFD.Exif] = facts
    picture.save(target, "JPEG", exif=exif)
    return target.getvalue()


@pytest.mark.parametrize(
    ("pattern", "path", "camera"),
    [
        ("{camera}/*", "/archive/cam_a/1.jpg", "cam_a"),
        ("{camera}/*/*", "/archive/cam_a/day/1.jpg", "cam_a"),
        ("*_{camera}s*", "/market/0002_c1s1_000451_03.jpg", "c1"),
        ("cam{camera}_?.jpg", "/x/cam12_7.jpg", "12"),
        ("{camera}.*.jpg", "/x/a(1).x.jpg", "a(1)"),
        ("{camera}/{camera}_*", "/x/gate/gate_1.jpg", "gate"),
        ("{camera}/{camera}_*", "/x/gate/door_1.jpg", None),
        ("{camera}/{time:%Y%m%d}*", "/x/gate/20261101.jpg", "gate"),
        ("{camera}/*", "1.jpg", None),
        ("cam{camera}_?.jpg", "/x/cam12_77.jpg", None),
    ],
)
def test_cameras_are_read_from_the_end_of_a_path(pattern, path, camera):
    assert PathPattern.parse(pattern, "camera").read(path) == camera


@pytest.mark.parametrize(
    ("pattern", "path", "time"),
    [
        ("{camera}/{time:%Y%m%d_%H%M%S}*", "/x/cam/20261101_083015_7.jpg", datetime(2026, 11, 1, 8, 30, 15)),
        ("{time:%Y-%m-%d}/{camera}_{time:%H%M}*", "/x/2026-11-01/gate_0830.jpg", datetime(2026, 11, 1, 8, 30)),
        ("{time:%y%j}.jpg", "/x/26032.jpg", datetime(2026, 2, 1)),
        ("*{time:%Y%m%dT%H%M%S.%f}*", "/x/a20261101T083015.25.jpg", datetime(2026, 11, 1, 8, 30, 15, 250_000)),
        ("{time:%s}.jpg", "/x/1700000000.jpg", datetime.fromtimestamp(1_700_000_000)),
        ("{time:%Y%m%d}*", "/x/20261341.jpg", None),
        ("{time:%Y%m%d}*", "/x/none.jpg", None),
    ],
)
def test_times_are_read_from_the_end_of_a_path(pattern, path, time):
    assert PathPattern.parse(pattern, "time").read(path) == time


@pytest.mark.parametrize(
    ("pattern", "fact", "why"),
    [
        ("", "camera", "it is empty"),
        ("{cam}/*", "camera", "{cam} is neither {camera} nor {time:FORMAT}"),
        ("{time}/*", "time", "{time} is neither"),
        ("*.jpg", "camera", "it has no {camera}"),
        ("{camera}/*", "time", "it has no {time:FORMAT}"),
        ("{camera", "camera", "it cannot be read from '{camera' on"),
        ("**/{camera}", "camera", "a * stays within a folder"),
        ("{time:%H%M}*", "time", "its time has no day"),
        ("{time:%Y%m%d%Q}*", "time", "%Q in '%Y%m%d%Q' is none of %Y, %y"),
        ("{time:%Y%m%d}/{time:%d}", "time", "a part of the time twice"),
    ],
)
def test_a_misspelt_pattern_is_refused_with_the_reason_and_an_example(pattern, fact, why):
    with pytest.raises(UsageError) as caught:
        PathPattern.parse(pattern, fact)
    assert why in caught.value.what
    assert caught.value.where == f"--{fact}-from"
    assert f"{{{fact}" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "time"),
    [
        (photograph("2026:11:01 08:30:15"), datetime(2026, 11, 1, 8, 30, 15)),
        (photograph("2026:11:01 08:30:15", "+05:00"), datetime(2026, 11, 1, 8, 30, 15)),
        (photograph("0000:00:00 00:00:00"), None),
        (photograph("yesterday"), None),
        (photograph(None), None),
        (b"no picture", None),
    ],
)
def test_exif_tells_the_wall_clock_of_the_camera(content, time):
    assert exif_time(content) == time


def described(describer: Describer, *files: ImageFile, taken: datetime | None = None) -> dict[str, list]:
    columns = describer.columns([ReadImage(file, "00", taken) for file in files], "/crops")
    return {name: column.to_pylist() for name, column in columns.items()}


def test_a_time_that_nothing_tells_is_that_of_the_file():
    file = ImageFile("gate/1.jpg", 5, 1_700_000_000_000_000_000)
    by_file = datetime.fromtimestamp(1_700_000_000)
    facts = described(Describer(), file)
    assert facts == {
        "path": ["/crops/gate/1.jpg"],
        "hash": ["00"],
        "size": [5],
        "mtime_ns": [1_700_000_000_000_000_000],
        "time": [by_file],
        "camera": [None],
    }
    assert described(Describer(time=PathPattern.parse("{time:%Y%m%d}*", "time")), file)["time"] == [by_file]
    assert described(Describer(time=EXIF), file)["time"] == [by_file]
    assert described(Describer(time=EXIF), file, taken=datetime(2026, 1, 2))["time"] == [datetime(2026, 1, 2)]


def test_paths_that_a_pattern_does_not_match_are_counted_and_the_first_shown():
    describer = Describer(PathPattern.parse("cam{camera}/*", "camera"), PathPattern.parse("{time:%Y%m%d}*", "time"))
    keys = ["/x/cam1/20261101.jpg", "/x/gate/20261101.jpg", "/x/door/20261101.jpg"]
    (unmatched,) = describer.unmatched(iter(keys))
    assert (unmatched.path, unmatched.count, unmatched.of) == ("/x/gate/20261101.jpg", 2, 3)
    assert str(unmatched) == "The pattern 'cam{camera}/*' does not match /x/gate/20261101.jpg nor 1 others of 3"
    assert Describer().unmatched(keys) == []


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "shifts.csv"
    file.write_text("shift,Path,day\n1,a.jpg,2026-11-01\n2,/other/b.jpg,\n,sub/../c.jpg,2026-11-03\n", encoding="utf-8")
    return file


def test_a_table_gives_its_columns_by_path_with_their_types(table):
    metadata = MetadataTable.read(table, "/crops")
    assert metadata.types == {"shift": pa.int64(), "day": pa.date32()}
    rows = metadata.rows(["/crops/c.jpg", "/crops/none.jpg", "/other/b.jpg", "/crops/a.jpg"])
    assert rows["shift"].to_pylist() == [None, None, 2, 1]
    assert [day and day.day for day in rows["day"].to_pylist()] == [3, None, None, 1]
    assert metadata.beside(DigestSet(["/crops/a.jpg", "/crops/c.jpg"])) == ["/other/b.jpg"]


def test_the_first_column_holds_the_paths_where_none_is_named_so(tmp_path):
    (tmp_path / "t.csv").write_text("file,note\na.jpg,\n")
    metadata = MetadataTable.read(tmp_path / "t.csv", "/crops")
    assert metadata.types == {"note": pa.string()}
    assert metadata.rows(["/crops/a.jpg"])["note"].to_pylist() in ([None], [""])


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("path,camera\na.jpg,x\n", UsageError, "'camera' cannot be added"),
        ("path,x\na.jpg,1\n./a.jpg,2\n", InputError, "A path has two rows: /crops/a.jpg"),
        ("path,x\na.jpg\n", InputError, "The table cannot be read"),
        ("", InputError, "The table cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, kind, what):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(kind, match=what):
        MetadataTable.read(tmp_path / "t.csv", "/crops")


@pytest.mark.parametrize(
    ("values", "kind", "fitting"),
    [
        (pa.array([1, None]), pa.string(), ["1", None]),
        (pa.array([1, None]), pa.float64(), [1.0, None]),
        (pa.array([2.0, None]), pa.int64(), [2, None]),
        (pa.nulls(2), pa.int64(), [None, None]),
        (pa.array(["x", "y"], pa.large_string()).dictionary_encode(), pa.string(), ["x", "y"]),
    ],
)
def test_a_table_takes_the_types_of_the_gallery(values, kind, fitting):
    table = MetadataTable(["a.jpg", "b.jpg"], pa.table({"x": values}), "/crops")
    table.fit({"x": kind}, Path("t.csv"))
    assert table.types == {"x": kind}
    assert table.rows(["/crops/a.jpg", "/crops/b.jpg"])["x"].to_pylist() == fitting


@pytest.mark.parametrize(
    ("value", "kind", "why"),
    [
        ("late", pa.int64(), "values are of type string"),
        (1.5, pa.int64(), "truncated"),
        (20261101, pa.date32(), "values are of type int64"),
    ],
)
def test_values_that_the_gallerys_type_cannot_tell_are_refused_with_their_file(value, kind, why):
    table = MetadataTable(["a.jpg"], pa.table({"x": [value]}), "/crops")
    with pytest.raises(InputError, match=f"'x' is of type {re.escape(str(kind))} in the gallery: .*{why}") as caught:
        table.fit({"x": kind}, Path("t.csv"))
    assert caught.value.where == "t.csv"


def test_keys_are_absolute_and_plain():
    assert key_of("/crops", "a/../b.jpg") == "/crops/b.jpg"
    assert key_of("/crops", "/else/b.jpg") == "/else/b.jpg"
    assert key_of("s3://bucket/crops/", "a/b.jpg") == "s3://bucket/crops/a/b.jpg"
    for root in ("s3://bucket/crops", "/crops"):
        assert key_of(root, "s3://bucket/crops/b.jpg") == "s3://bucket/crops/b.jpg"


def test_a_file_from_no_day_there_is_has_no_time():
    image = ReadImage(ImageFile("1.jpg", 1, 10**21), "00")
    assert Describer()._time("/x/1.jpg", image) is None
