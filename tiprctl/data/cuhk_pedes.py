"""CUHK-PEDES (Li et al., CVPR 2017): `reid_raw.json`, a list of {split, captions, file_path, processed_tokens, id}.

The built-in data set is written in the same layout and read by the same reader.
"""

from __future__ import annotations

from pathlib import Path

from tiprctl.data.records import DataSet, Fields, Record, SplitSize, read_objects
from tiprctl.errors import InputError


def read(file: Path) -> list[Record]:
    """The records of `reid_raw.json`; image paths are relative to `imgs/`.

    Raises:
        InputError: the file cannot be read, or is the original distribution's `caption_all.json`, without splits.
    """
    records = []
    for fields in read_objects(file):
        if not records and _is_caption_all(fields):
            raise InputError(
                "This is caption_all.json of the original distribution: it says of no image whether it is for training,"
                " validation or test",
                where=file,
                remedy="Put reid_raw.json beside it: the same captions with their splits, sent by the data set's "
                f"authors in the same archive ({_AUTHORS}).",
            )
        records.append(fields.record("file_path"))
    return records


def _is_caption_all(fields: Fields) -> bool:
    return "split" not in fields.values and {"id", "file_path", "captions"} <= fields.values.keys()


_AUTHORS = "github.com/ShuangLI59/Person-Search-with-Natural-Language-Description"

CUHK_PEDES = DataSet(
    name="cuhk-pedes",
    folder="CUHK-PEDES",
    # The second is here to be recognised and explained.
    annotations=("reid_raw.json", "caption_all.json"),
    read=read,
    source=f"its authors send it on request: {_AUTHORS}",
    published={
        "train": SplitSize(11_003, 34_054, 68_126),
        "val": SplitSize(1_000, 3_078, 6_158),
        "test": SplitSize(1_000, 3_074, 6_156),
    },
)
