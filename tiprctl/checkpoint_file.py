"""Checkpoint files without their tensors, and without torch: which file a name means, and what its header tells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tiprctl.errors import InputError, UsageError
from tiprctl.runs import LATEST, RUNS, Run, latest_run

FORMAT = 1
HEADER = frozenset({"clip", "head", "config", "dataset", "epoch", "selected_on", "fingerprint"})
"""What every header says, beside the format."""

PIXELS = "Pillow, antialiased bilinear"
"""How a picture comes to the size that a model sees, as `images.load_pixels` does it: vectors depend on it."""


def find_source(source: str | Path | None) -> Path | None:
    """The checkpoint file that `source` means; None when it names a pretrained CLIP.

    Args:
        source: a run's folder, a checkpoint file, a pretrained CLIP as `ViT-B-16/openai` or `ViT-B-16/FILE`;
            None is the newest finished run under `runs`.

    Raises:
        UsageError: there is no finished run. InputError: there is no such file, folder or CLIP.
    """
    path = LATEST if source is None else Path(source)
    if path == LATEST and (path.is_symlink() or not path.exists()):
        run = latest_run()
        if run is None:
            raise UsageError(
                "There is no finished run to use",
                where=RUNS.absolute(),
                remedy="Name a run, an export or a pretrained CLIP (query, index: --model ViT-B-16/openai), "
                "or train one: tiprctl train.",
            )
        return run.checkpoint
    if path.is_dir():
        return Run(path).checkpoint
    if path.is_file():
        return path
    if _is_published(str(source)):
        return None
    raise InputError(
        "There is no such run, checkpoint or pretrained CLIP",
        where=source,
        remedy="Name a run's folder (runs/latest), a checkpoint file, or a tag such as ViT-B-16/openai.",
    )


def _is_published(source: str) -> bool:
    # Here alone, since it takes torch.
    from tiprctl.models.clip import QUICK_GELU_SUFFIX, SIZES

    return source.partition("/")[0].removesuffix(QUICK_GELU_SUFFIX) in SIZES


def named_again(source: str | Path | None, file: Path | None) -> str:
    """How to name later what `source` means now, when it means `file`: the newest run by its own folder."""
    return str(source) if file is None or (source is not None and Path(source).is_file()) else str(file.parent)


def is_own(file: Path) -> bool:
    """Whether tiprctl wrote the checkpoint."""
    try:
        return "tiprctl" in _metadata(file)
    except (SafetensorError, OSError):
        return False


def read_header(file: Path) -> dict[str, Any]:
    """The header of a checkpoint of tiprctl.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint of tiprctl or of a newer format.
    """
    try:
        metadata = _metadata(file)
    except FileNotFoundError as error:
        raise InputError("There is no such checkpoint", where=file, remedy="Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"The checkpoint is damaged: {error}", where=file, remedy="Copy it again, or train it again."
        ) from error
    if "tiprctl" not in metadata:
        raise InputError("Not a checkpoint of tiprctl", where=file, remedy="Name a run's folder or a file it wrote.")
    try:
        header = json.loads(metadata["tiprctl"])
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise _damaged_header(file)
    if header["format"] > FORMAT:
        raise InputError(
            f"The checkpoint has format {header['format']}, newer than this program's {FORMAT}",
            where=file,
            remedy="Upgrade tiprctl.",
        )
    if not header.keys() >= HEADER:
        raise _damaged_header(file)
    return header


def vectors_fingerprint(header: Mapping[str, Any]) -> str:
    """What a header says of the vectors of its encoder: it changes with whatever changes them.

    That is the weights, the sizes (with the image size and the kind of GELU), the head and its options, BERT's sizes
    and vocabulary, and how pictures are resized. CLIP's tokenizer is the same everywhere. The version of ftfy, which
    repairs sentences, is left out: what is stored are vectors of images, which it does not change.
    """
    parts = {name: header.get(name) for name in ("fingerprint", "clip", "head", "head_options", "bert")}
    return hashlib.sha256(json.dumps([PIXELS, parts], sort_keys=True).encode()).hexdigest()[:32]


def _metadata(file: Path) -> dict[str, str]:
    """What stands beside the tensors; the framework is only that of tensors, none of which is read."""
    with safe_open(file, framework="np") as archive:
        return archive.metadata() or {}


def _damaged_header(file: Path) -> InputError:
    return InputError("The checkpoint's header is damaged", where=file, remedy="Copy it again, or train it again.")
