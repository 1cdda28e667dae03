"""What the gallery asks of a model, and how one is chosen: an export by onnxruntime, or the encoder by torch."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tiprctl.checkpoint_file import find_source, is_own, named_again, read_header, vectors_fingerprint
from tiprctl.errors import InputError
from tiprctl.exported import CARD, REMEDY, ExportedModel, knows_gpu, read_card
from tiprctl.runs import LATEST, Run

if TYPE_CHECKING:
    import numpy as np

    from tiprctl.precision import Precision
    from tiprctl.tokenizer import Tokenizer

EXPORTS = Path("exports")
"""Where the exports of models lie that are named by a tag, which has no place of its own."""


class VectorModel(Protocol):
    """Images and sentences to vectors of one space, rows of unit length."""

    width: int
    image_size: tuple[int, int]
    """(H, W), pixels."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the token ids that it reads."""

    @property
    def description(self) -> str:
        """Which model it is, for people."""

    @property
    def source(self) -> str:
        """How a user names it again: a run's folder, a file, a tag."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the vectors could: with the weights, and with what they are applied to.

        The precision is not in it: vectors of two precisions can be compared.
        """

    @property
    def precision(self) -> Precision:
        """What it computes in."""

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `(B, H, W, 3)` of `image_size` to float32 `(B, width)`."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B sentences to float32 `(B, width)`."""


def load_vector_model(
    source: str | Path | None,
    *,
    device: str | None = None,
    bulk: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> VectorModel:
    """The model of that name to embed with: its export where there is one that fits, else the encoder by torch.

    An export runs on the processor, where it starts in a tenth of the time of torch and is as fast or faster. Who
    embeds in `bulk` gets torch all the same where there is a CUDA device that this onnxruntime cannot use; where it
    can, the export runs there. So does who names a `device` other than cpu. The folder of an export that is named
    itself is used in any case, since there may be nothing else.

    Args:
        source: as for `find_source`; the folder of an export too, which then needs nothing else.
        device: as for `find_device`.
        tell: is told why an export that is there is not used.

    Raises:
        UsageError, InputError: there is no such model, or it cannot be read.
    """
    if source is not None and (Path(source) / CARD).is_file():
        return _named_export(Path(source), device, bulk, tell)
    if device in (None, "cpu"):
        exported = _find_export(source, tell)
        if exported and not (bulk and device is None and _better_on_cuda()):
            named = named_again(source, _checkpoint(source))
            return ExportedModel(exported, gpu=bulk and device is None, source=named)
    from tiprctl.precision import find_device
    from tiprctl.sources import load_embedder

    return load_embedder(source, device=find_device(device))


def export_folder(source: str | Path | None) -> Path:
    """Where the export of a model lies: in the folder of the run whose checkpoint it is, beside any other file
    (`clip.pt.export`), or else, of a tag, in a folder of its name under `exports`.

    Raises:
        UsageError, InputError: as `find_source`, for what is a folder or a file.
    """
    file = _checkpoint(source)
    if file is not None and _is_chosen(file):
        return file.parent / "export"
    if file is not None:
        return file.with_name(f"{file.name}.export")
    name, _, path = str(source).partition("/")
    if Path(path).is_file():
        # Read as another CLIP, the same file gives other vectors.
        return Path(f"{path}.{name}.export")
    return EXPORTS / re.sub(r"[^\w.-]+", "-", str(source)).strip("-")


def weights_stamp(source: str) -> list[int] | None:
    """Size and time (ns) of the file of a published CLIP, `FILE` or `ViT-B-16/FILE`; None of a tag, which has no file.

    An export of it is known by that to be out of date.
    """
    for file in (Path(source), Path(source.partition("/")[2])):
        if file.is_file():
            status = file.stat()
            return [status.st_size, status.st_mtime_ns]
    return None


def _named_export(folder: Path, device: str | None, bulk: bool, tell: Callable[[str], object]) -> ExportedModel:
    """The export in the folder that the user named, on the device asked for or else on the processor, which is told."""
    gpu = bulk if device is None else device.startswith("cuda") and knows_gpu()
    if device not in (None, "cpu") and not gpu:
        tell(f"With the installed onnxruntime, an export does not run on {device}: it runs on the processor.")
    return ExportedModel(folder, gpu=gpu, source=str(folder))


def _find_export(source: str | Path | None, tell: Callable[[str], object]) -> Path | None:
    """The folder of an export of that model, if there is one that fits it.

    What is found but cannot be used is told.

    Raises:
        UsageError, InputError: as `export_folder`.
    """
    folder = export_folder(source)
    if not (folder / CARD).is_file():
        return None
    try:
        fits = _fits(read_card(folder), source)
    except InputError as error:
        tell(f"{error.what}: {error.where}. It is not used. {error.remedy}")
        return None
    if not fits:
        tell(f"The export is not of this model as it is now: {folder}. It is not used. {REMEDY}")
    return folder if fits else None


def _fits(card: dict[str, Any], source: str | Path | None) -> bool:
    """Whether an export was made of what `source` means now."""
    file = _checkpoint(source)
    if file is not None and is_own(file):
        return card["fingerprint"] == vectors_fingerprint(read_header(file))
    weights = weights_stamp(str(source))
    # Of a file, which lies beside its export, the name depends on the folder that it is named from.
    return card["weights"] == weights and (weights is not None or card["source"] == named_again(source, file))


def _checkpoint(source: str | Path | None) -> Path | None:
    """The checkpoint file that `source` means, None where it is no file or folder.

    Whether it is a published CLIP is left to who loads it, since to tell takes torch.
    """
    missing = source is not None and Path(source) != LATEST and not Path(source).exists()
    return None if missing else find_source(source)


def _is_chosen(file: Path) -> bool:
    """Whether the file is what a run's folder means, and not another epoch of it."""
    try:
        return Run(file.parent).checkpoint == file
    except InputError:
        return False


def _better_on_cuda() -> bool:
    """Whether torch finds a CUDA device that this onnxruntime cannot use."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        # Without a driver there is no device, and torch need not be imported to tell.
        return False
    if knows_gpu():
        return False
    import torch

    return torch.cuda.is_available()
