"""The arithmetic of large galleries: what it takes from the measurements, and what it makes of them."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
GALLERY = {
    "galleries": [
        {"rows": 10_000, "searched": [{"exact": True, "median": 0.9}]},
        {"rows": 100_000, "searched": [{"exact": False, "median": 0.002}], "index_bytes": 7, "optimise_seconds": 3},
        {
            "rows": 1_000_000,
            "searched": [{"exact": False, "median": 0.011}, {"exact": True, "median": 5}],
            "index_bytes": 300_000_000,
            "optimise_seconds": 36,
        },
    ]
}
INDEXING = {
    "rates": [{"model": "built-in", "add": [900.0]}, {"model": "ViT-B/16", "add": [10.0, 12.0, 11.0]}],
    "machine": {"threads": 2},
}


@pytest.fixture
def arithmetic(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gallery_arithmetic")


def test_what_the_measurements_tell(arithmetic):
    measured = arithmetic.read_measured(GALLERY, INDEXING)
    assert (measured.index, measured.build, measured.rows) == (300, 36, 1_000_000)
    assert measured.search == pytest.approx(1e-8)
    assert measured.start == pytest.approx(0.001)
    assert (measured.embed, measured.model, measured.cores) == (11.0, "ViT-B/16", 2)


def test_one_indexed_gallery_tells_too_little(arithmetic):
    with pytest.raises(SystemExit, match="two galleries"):
        arithmetic.read_measured({"galleries": GALLERY["galleries"][:2]}, INDEXING)


def test_what_100_million_crops_need(arithmetic):
    sizes = arithmetic.Sizes(row=2200, fragment=100)
    prices = arithmetic.Assumed(gpu=1000, core_hour=0.1, gpu_hour=2, gigabyte_month=0.02)
    found = arithmetic.needs(100_000_000, sizes, arithmetic.read_measured(GALLERY, INDEXING), prices)
    assert (found.vectors, found.index, found.driver) == (220e9, 30e9, 3.6e9)
    assert found.entries == 12_208 * 100
    assert found.core_hours == pytest.approx(1e8 / 11 * 2 / 3600)
    assert found.gpu_hours == pytest.approx(1e5 / 3600)
    assert found.build_hours == pytest.approx((1.0, 10.0))
    assert found.search_seconds == pytest.approx(1.001)
    assert found.embed_cost == pytest.approx((found.core_hours * 0.1, found.gpu_hours * 2))
    assert found.month_cost == pytest.approx(5.0)


def test_a_row_weighs_at_least_its_vector(arithmetic, tmp_path, monkeypatch, capsys):
    files = []
    for name, document in (("gallery", GALLERY), ("indexing", INDEXING)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(document))
    monkeypatch.setattr(arithmetic, "BLOCK", 512)
    monkeypatch.setattr("_report.CEILING_SIZE", 64)
    monkeypatch.setattr(sys, "argv", ["gallery_arithmetic.py", *map(str, files), "--quick", "--json"])
    arithmetic.main()
    document = json.loads(capsys.readouterr().out)
    assert 4 * 512 < document["sizes"]["row"] < 2 * 4 * 512
    assert 0 < document["sizes"]["fragment"] < 2000
    assert [each["rows"] for each in document["needs"]] == [1_000_000, 100_000_000, 1_000_000_000]
