"""Checkpoints on disk: safetensors with a JSON header, read without executing anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tiprctl.config import ModelConfig
from tiprctl.errors import InputError, UsageError, unknown_name
from tiprctl.files import atomic_path
from tiprctl.models.clip import SIZES, Clip, ClipConfig
from tiprctl.models.embedder import Embedder, Origin
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.weights import check_fit, load_pretrained
from tiprctl.runs import RUNS, Run, latest_run

FORMAT = 1
ENCODER = "encoder."


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


def is_own(file: Path) -> bool:
    """Whether tiprctl wrote the checkpoint."""
    try:
        with safe_open(file, framework="pt") as archive:
            return "tiprctl" in (archive.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_header(file: Path) -> dict[str, Any]:
    """The header of a checkpoint of tiprctl; raises as `read_checkpoint`."""
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = archive.metadata() or {}
    except FileNotFoundError as error:
        raise InputError("There is no such checkpoint", where=file, remedy="Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"The checkpoint is damaged: {error}", where=file, remedy="Copy it again, or train it again."
        ) from error
    if "tiprctl" not in metadata:
        raise InputError("Not a checkpoint of tiprctl", where=file, remedy="Name a run's folder or a file it wrote.")
    header = json.loads(metadata["tiprctl"])
    if header["format"] > FORMAT:
        raise InputError(
            f"The checkpoint has format {header['format']}, newer than this program's {FORMAT}",
            where=file,
            remedy="Upgrade tiprctl.",
        )
    return header


def build_encoder(model: ModelConfig, generator: torch.Generator) -> DualEncoder:
    """A dual encoder as training starts with it: pretrained, or random from `generator`.

    Raises:
        UsageError: the size is unknown. InputError: the weights cannot be had.
    """
    if model.pretrained != "none":
        clip = load_pretrained(model.name, model.pretrained, image_size=model.image_size, stride=model.stride)
        return DualEncoder(clip, model.head)
    clip = Clip(clip_config(model))
    clip.initialise(generator)
    return DualEncoder(clip, model.head)


def encoder_header(encoder: DualEncoder) -> dict[str, Any]:
    """What a checkpoint's header must say for `load_encoder` to rebuild the encoder."""
    return {"clip": encoder.clip.config.to_dict(), "head": encoder.head.name}


def load_encoder(file: Path) -> tuple[DualEncoder, dict[str, Any]]:
    """The encoder of a checkpoint that a run wrote, and the checkpoint's header.

    Raises:
        InputError: the tensors do not fit the sizes that the header gives.
    """
    tensors, header = read_checkpoint(file, ENCODER)
    encoder = DualEncoder(Clip(ClipConfig.from_dict(header["clip"])), header["head"])
    load_weights(encoder, tensors, file)
    return encoder, header


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load `tensors` into `module`.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    check_fit(module.state_dict(), tensors, file)
    module.load_state_dict(dict(tensors))


def load_embedder(source: str | Path | None, *, device: torch.device, amp: str = "auto") -> Embedder:
    """The model to use for evaluation and search.

    Args:
        source: a run's folder, a checkpoint file, a pretrained CLIP as `ViT-B-16/openai`; None is the newest
            finished run under `runs`.

    Raises:
        UsageError: there is nothing to use. InputError: the checkpoint cannot be read.
    """
    path = find_source(source)
    encoder, origin = _published(str(source), path) if path is None or not is_own(path) else _own(path)
    return Embedder(encoder, device=device, amp=amp, origin=origin)


def _own(file: Path) -> tuple[DualEncoder, Origin]:
    """The encoder of a checkpoint that a run wrote."""
    encoder, header = load_encoder(file)
    origin = Origin(
        description=f"{file} (epoch {header['epoch']}, chosen on {header['selected_on']})",
        fingerprint=header["fingerprint"],
        recipe=header["config"]["recipe"],
        dataset=header["dataset"],
        selected_on=header["selected_on"],
    )
    return encoder, origin


def _published(source: str, file: Path | None) -> tuple[DualEncoder, Origin]:
    """A published CLIP, from a file or by its tag, at the input of person retrieval."""
    image_size = ModelConfig().image_size
    if file is not None:
        clip = load_pretrained(None, file, image_size=image_size)
        fingerprint = weights_fingerprint(clip.state_dict())
    else:
        name, _, tag = source.partition("/")
        clip, fingerprint = load_pretrained(name, tag, image_size=image_size), source
    return DualEncoder(clip), Origin(f"{source}, not fine-tuned", fingerprint)


def find_source(source: str | Path | None) -> Path | None:
    """The checkpoint file that `source` means; None when it names a pretrained CLIP. See `load_embedder`."""
    if source is None or (str(source) == str(RUNS / "latest") and not Path(source).exists()):
        run = latest_run()
        if run is None:
            raise UsageError(
                "There is no finished run to use",
                where=RUNS,
                remedy="Train one (tiprctl train), or name a pretrained CLIP (--model ViT-B-16/openai).",
            )
        return run.checkpoint
    path = Path(source)
    if path.is_dir():
        return Run(path).checkpoint if Run(path).info else None
    if path.is_file():
        return path
    if str(source).partition("/")[0] in SIZES:
        return None
    raise InputError(
        "There is no such run, checkpoint or pretrained CLIP",
        where=source,
        remedy="Name a run's folder (runs/latest), a checkpoint file, or a tag such as ViT-B-16/openai.",
    )


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and contents: equal weights, equal fingerprint."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def clip_config(model: ModelConfig) -> ClipConfig:
    """The sizes of `model.name` at the model's image size and stride.

    Raises:
        UsageError: there is no such size (the choices are listed), or the image does not fit its patches.
    """
    if model.name not in SIZES:
        raise unknown_name("model", model.name, SIZES)
    named = SIZES[model.name]
    return replace(named, image_size=model.image_size, stride=model.stride or named.patch_size)
