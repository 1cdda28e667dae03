"""RSTPReid (Zhu et al., ACM MM 2021): `data_captions.json`, a list of {id, img_path, captions, split}."""

from __future__ import annotations

from pathlib import Path

from tiprctl.data.records import DataSet, Record, SplitSize, read_objects


def read(file: Path) -> list[Record]:
    """The records of `data_captions.json`; image paths are relative to `imgs/`.

    Raises:
        InputError: the file cannot be read or a record is malformed.
    """
    return [fields.record("img_path") for fields in read_objects(file)]


RSTPREID = DataSet(
    name="rstpreid",
    folder="RSTPReid",
    annotations=("data_captions.json",),
    read=read,
    source="its authors publish it: github.com/NjtechCVLab/RSTPReid-Dataset",
    published={
        "train": SplitSize(3_701, 18_505, 37_010),
        "val": SplitSize(200, 1_000, 2_000),
        "test": SplitSize(200, 1_000, 2_000),
    },
)
