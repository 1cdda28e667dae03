"""ICFG-PEDES (Ding et al., 2021): `ICFG-PEDES.json`, a list of {split, captions, file_path, processed_tokens, id}.

One caption an image; there is no validation split.
"""

from __future__ import annotations

from pathlib import Path

from tiprctl.data.records import DataSet, Record, SplitSize, read_objects


def read(file: Path) -> list[Record]:
    """The records of `ICFG-PEDES.json`; image paths are relative to `imgs/`.

    Raises:
        InputError: the file cannot be read or a record is malformed.
    """
    return [fields.record("file_path") for fields in read_objects(file)]


ICFG_PEDES = DataSet(
    name="icfg-pedes",
    folder="ICFG-PEDES",
    # Some copies spell it with an underscore.
    annotations=("ICFG-PEDES.json", "ICFG_PEDES.json"),
    read=read,
    source="its authors send it on request: github.com/zifyloo/SSAN",
    published={"train": SplitSize(3_102, 34_674, 34_674), "test": SplitSize(1_000, 19_848, 19_848)},
)
