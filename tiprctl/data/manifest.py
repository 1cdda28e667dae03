"""The manifest of a prepared data set: one parquet table, one row a caption, beside the images it speaks of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tiprctl.data.catalog import DATA_SETS, data_home
from tiprctl.data.folder import FOLDER
from tiprctl.data.records import Record, SplitSize
from tiprctl.data.synth_pedes import COMMANDS, SYNTH_PEDES
from tiprctl.errors import InputError, TiprError, UsageError, unknown_name
from tiprctl.files import atomic_path

FILE_NAME = "manifest.parquet"

SCHEMA = pa.schema([("split", pa.string()), ("pid", pa.int64()), ("path", pa.string()), ("caption", pa.string())])

_METADATA = b"tiprctl"


@dataclass(frozen=True, eq=False)
class Split:
    """The images and captions of one split.

    `image_paths` are absolute; `image_pids` (n_images,), `caption_pids` (n_captions,) and `caption_images`
    (n_captions,), which index `image_paths`, are int64. Identities are the data set's own numbers, with gaps.
    A path annotated with two identities counts as two images, as it does in the published protocol. `dataset` and
    `root` are those of the manifest.
    """

    dataset: str
    root: Path
    name: str
    image_paths: list[Path]
    image_pids: np.ndarray
    captions: list[str]
    caption_pids: np.ndarray
    caption_images: np.ndarray


@dataclass(frozen=True, eq=False)
class Manifest:
    """A prepared data set: `captions` has the columns split, pid, path (posix, relative to `root`), caption."""

    dataset: str
    root: Path
    captions: pd.DataFrame

    @property
    def title(self) -> str:
        """What to call it before people: its folder's name where that tells more than the data set's, else the latter.

        It does where it holds the latter, as `synth-pedes-hard`, and for users' own images, which share one name.
        """
        name = _folder_name(self.root)
        return name if self.dataset in name or self.dataset == FOLDER.name else self.dataset

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the rows in their order, wherever the folder lies and whichever library wrote it."""
        columns = (self.captions[name].tolist() for name in SCHEMA.names)
        return hashlib.sha256(json.dumps(list(zip(*columns))).encode()).hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in order of first appearance."""
        return tuple(self.captions["split"].unique())

    @property
    def sizes(self) -> dict[str, SplitSize]:
        """Identities, images and captions of each split; an image with two identities counts twice."""
        rows = self.captions.groupby("split", sort=False)
        return {
            name: SplitSize(part["pid"].nunique(), len(part[["path", "pid"]].drop_duplicates()), len(part))
            for name, part in rows
        }

    def split(self, name: str) -> Split:
        """The images and captions of one split, in the order of the rows.

        Raises:
            InputError: the data set has no such split; those it has are listed.
        """
        rows = self.captions[self.captions["split"] == name]
        if rows.empty:
            way = " Give its table a column split and prepare it again." if self.dataset == FOLDER.name else ""
            raise InputError(
                f"{self.dataset} has no split named {name!r}",
                where=self.root / FILE_NAME,
                remedy=f"It has: {', '.join(self.splits) or 'none, it is empty'}.{way}",
            )
        image_of_row = rows.groupby(["path", "pid"], sort=False).ngroup().to_numpy(np.int64)
        images = rows.drop_duplicates(["path", "pid"])
        root = self.root.absolute()
        return Split(
            dataset=self.dataset,
            root=root,
            name=name,
            image_paths=[root / path for path in images["path"]],
            image_pids=images["pid"].to_numpy(np.int64),
            captions=rows["caption"].tolist(),
            caption_pids=rows["pid"].to_numpy(np.int64),
            caption_images=image_of_row,
        )


def build_manifest(dataset: str, root: Path, records: Iterable[Record]) -> Manifest:
    """The manifest of a data set's records: one row for each caption that says anything."""
    rows = [
        (record.split, record.pid, record.path, caption)
        for record in records
        for caption in record.captions
        if caption.strip()
    ]
    frame = pd.DataFrame(rows, columns=SCHEMA.names).astype({"pid": np.int64})
    return Manifest(dataset, root, frame)


def write_manifest(manifest: Manifest) -> Path:
    """Write `<root>/manifest.parquet` atomically; its schema's metadata names the data set.

    Raises:
        InputError: the folder cannot be written.
    """
    about = json.dumps({"dataset": manifest.dataset, "fingerprint": manifest.fingerprint})
    table = pa.Table.from_pandas(manifest.captions, schema=SCHEMA, preserve_index=False)
    target = manifest.root / FILE_NAME
    with atomic_path(target) as temporary:
        pq.write_table(table.replace_schema_metadata({_METADATA: about}), temporary, compression="zstd")
    return target


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of the data set in `folder`; the folder may have moved since it was written.

    Raises:
        InputError: there is none, it is damaged, or it is no manifest of this program.
    """
    file = Path(folder) / FILE_NAME
    dataset = _dataset_of(file)
    try:
        table = pq.read_table(file, columns=SCHEMA.names)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file) from error
    return Manifest(dataset, file.parent, table.cast(SCHEMA).to_pandas())


def standing_manifest(dataset: str, folder: Path) -> Manifest | None:
    """The manifest of this data set in `folder`; None where there is none, a damaged one, or that of another."""
    try:
        manifest = read_manifest(folder)
    except InputError:
        return None
    return manifest if manifest.dataset == dataset else None


def find_manifest(name: str | None, root: Path | None) -> Manifest:
    """The prepared data set that `name` means, or the only one there is.

    Args:
        name: a data set's name, the name of its folder, or, without `root`, the path of that folder; None takes the
            only one.
        root: a data set's folder or a folder of data sets; default `$TIPRCTL_DATA`, else `./data`.

    Raises:
        InputError: none is prepared, or not this one; says how to prepare it.
        UsageError: several fit, which are listed; or the name is misspelt.
    """
    if name is not None and root is None and (Path(name) / FILE_NAME).is_file():
        return read_manifest(name)
    home = data_home() if root is None else root
    prepared = {folder: _dataset_of(folder / FILE_NAME) for folder in _prepared_folders(home)}
    fitting = _fitting(name, prepared, home)
    if len(fitting) == 1:
        return read_manifest(fitting[0])
    if fitting:
        raise _ambiguous(fitting, home)
    raise _not_prepared(name, prepared, home)


def _folder_name(folder: Path) -> str:
    """The name of a folder, in lower case, wherever a link to it may stand."""
    return folder.resolve().name.lower()


def _prepared_folders(home: Path) -> list[Path]:
    folders = [home, *sorted(home.iterdir())] if home.is_dir() else []
    return [folder for folder in folders if (folder / FILE_NAME).is_file()]


def _fitting(name: str | None, prepared: dict[Path, str], home: Path) -> list[Path]:
    """The folders of that name or, where there are none, those that hold the data set of that name.

    In `home`, a folder that is named for another of the built-in data sets holds that one, though they share the name.
    """
    if name is None:
        return list(prepared)
    wanted = name.lower()
    named = [folder for folder in prepared if _folder_name(folder) == wanted]
    others = COMMANDS.keys() - {wanted}
    return named or [
        folder
        for folder, dataset in prepared.items()
        if dataset == wanted and (folder == home or _folder_name(folder) not in others)
    ]


def _dataset_of(file: Path) -> str:
    """The data set's name in a manifest's metadata; the rows are not read."""
    if not file.is_file():
        raise InputError("No data set is prepared here", where=file.parent, remedy="Run `tiprctl prepare` on it first.")
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file) from error
    about = (schema.metadata or {}).get(_METADATA)
    if about is None or not set(SCHEMA.names) <= set(schema.names):
        raise InputError("This parquet file is not a manifest", where=file, remedy="Prepare the data set again.")
    return json.loads(about)["dataset"]


def _damaged(file: Path) -> InputError:
    return InputError("The manifest is damaged", where=file, remedy="Prepare the data set again.")


def _ambiguous(fitting: list[Path], home: Path) -> UsageError:
    listed = ", ".join(f"{_folder_name(folder)} ({folder})" for folder in fitting)
    return UsageError(
        f"{len(fitting)} prepared data sets fit: {listed}", where=home, remedy="Name one of them by its folder."
    )


def _not_prepared(name: str | None, prepared: dict[Path, str], home: Path) -> TiprError:
    folders = sorted(_folder_name(folder) for folder in prepared)
    known = {*DATA_SETS, *COMMANDS, *prepared.values(), *folders}
    if name is not None and name.lower() not in known and not Path(name).is_dir():
        return unknown_name("data set", name, known)
    beside = f"; prepared are: {', '.join(folders)}" if prepared else ""
    what = f"{name} is not prepared{beside}" if name else "No data set is prepared"
    return InputError(what, where=home, remedy=f"Run {_command(name)}, or name a folder with --root.")


def _command(name: str | None) -> str:
    """How to prepare what was asked for, or the built-in data set when nothing was."""
    built_in = (name or SYNTH_PEDES.folder).lower()
    if built_in in COMMANDS:
        return f"`{COMMANDS[built_in]}` to make the built-in one"
    if name.lower() in DATA_SETS:
        return f"`tiprctl prepare {name.lower()}`"
    return f"`tiprctl prepare folder --root {name}`"
