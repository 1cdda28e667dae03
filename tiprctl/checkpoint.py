"""Checkpoints on disk: safetensors with a JSON header, read without executing anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tiprctl.checkpoint_file import FORMAT, read_header
from tiprctl.config import to_dict
from tiprctl.errors import InputError
from tiprctl.files import atomic_path
from tiprctl.models.bert import Bert
from tiprctl.models.clip import Clip, ClipConfig
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.heads import HEADS
from tiprctl.models.weights import check_fit

ENCODER, OBJECTIVES = "encoder.", "objectives."
"""What the names of the encoder's tensors, and of the objectives', begin with."""


def save_checkpoint(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able header into one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"tiprctl": json.dumps({"format": FORMAT, **header})}
    with atomic_path(file) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_checkpoint(file: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors whose names begin with `prefix` (then without it), and the header.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint of tiprctl or of a newer format.
    """
    header = read_header(file)
    with safe_open(file, framework="pt") as archive:
        names = [name for name in archive.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): archive.get_tensor(name) for name in names}, header


def encoder_header(encoder: DualEncoder) -> dict[str, Any]:
    """What a checkpoint's header must say for `load_encoder` to rebuild the encoder."""
    head = encoder.head
    header = {"clip": encoder.clip.config.to_dict(), "head": head.name, "head_options": to_dict(head.config)}
    return header if encoder.bert is None else header | {"bert": encoder.bert.header()}


def empty_encoder(header: Mapping[str, Any]) -> DualEncoder:
    """The encoder that a checkpoint's header describes, before its weights are loaded.

    Raises:
        UsageError: it has a BERT, and the extra `bert` is not installed.
    """
    bert = Bert.from_header(header["bert"]) if "bert" in header else None
    return DualEncoder(
        Clip(ClipConfig.from_dict(header["clip"])), header["head"], header.get("head_options"), bert=bert
    )


def load_encoder(file: Path) -> tuple[DualEncoder, dict[str, Any]]:
    """The encoder of a checkpoint that a run wrote, and the checkpoint's header.

    Raises:
        InputError: there is no such head here, or the tensors do not fit the sizes that the header gives.
    """
    tensors, header = read_checkpoint(file, ENCODER)
    if header["head"] not in HEADS:
        raise InputError(
            f"The checkpoint has the head {header['head']}, and there are only {', '.join(HEADS)}",
            where=file,
            remedy="Open it with the program that adds this head (docs/extending.md).",
        )
    encoder = empty_encoder(header)
    load_weights(encoder, tensors, file)
    return encoder, header


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load `tensors` into `module`.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    check_fit(module.state_dict(), tensors, file)
    module.load_state_dict(dict(tensors))


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and contents: equal weights, equal fingerprint."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
