"""From what a user names to a model ready to use: a run, a checkpoint file, or a published CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tiprctl.checkpoint import encoder_header, load_encoder, weights_fingerprint
from tiprctl.checkpoint_file import find_source, is_own, named_again, read_header, vectors_fingerprint
from tiprctl.config import ModelConfig, TrainConfig, from_dict
from tiprctl.models.clip import QUICK_GELU_SUFFIX
from tiprctl.models.embedder import Embedder, ModelOrigin
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.heads.global_token import GlobalToken
from tiprctl.models.weights import find_weights, fit_clip


@dataclass(frozen=True)
class Preview:
    """What is known of a model before its weights are read: its head, and of a run's the data that it learnt from and
    what told its captions' nouns, where it needed to know them."""

    head: str = GlobalToken.name
    dataset: str | None = None
    data_root: Path | None = None
    tagger: str | None = None


def preview(source: str | Path | None) -> Preview:
    """What the header of a model's checkpoint tells; a published CLIP has none.

    Raises:
        UsageError, InputError: as `load_embedder`, but for damaged weights.
    """
    file = find_source(source)
    return _previewed(read_header(file)) if file is not None and is_own(file) else Preview()


def _previewed(header: Mapping[str, Any]) -> Preview:
    """What a header tells; those of older versions tell less."""
    root = header.get("data_root")
    return Preview(
        head=header["head"],
        dataset=header["dataset"],
        data_root=Path(root) if root else None,
        tagger=(header.get("captions") or {}).get("tagger"),
    )


def load_embedder(source: str | Path | None, *, device: torch.device) -> Embedder:
    """The model to use for evaluation and search, in the precision that it was trained with.

    Args:
        source: a run's folder, a checkpoint file, a pretrained CLIP as `ViT-B-16/openai` or `ViT-B-16/FILE`;
            None is the newest finished run under `runs`.

    Raises:
        UsageError: there is nothing to use. InputError: the checkpoint cannot be read.
    """
    path = find_source(source)
    encoder, origin = _published(str(source), path) if path is None or not is_own(path) else _own(path)
    amp = origin.config.amp if origin.config else "auto"
    origin = replace(origin, source=named_again(source, path))
    return Embedder(encoder, device=device, amp=amp, origin=origin)


def _own(file: Path) -> tuple[DualEncoder, ModelOrigin]:
    """The encoder of a checkpoint that a run wrote."""
    encoder, header = load_encoder(file)
    known = _previewed(header)
    origin = ModelOrigin(
        description=f"{file} (epoch {header['epoch']}, chosen on {header['selected_on']})",
        fingerprint=header["fingerprint"],
        vectors=vectors_fingerprint(header),
        config=from_dict(TrainConfig, header["config"], where=str(file)),
        dataset=known.dataset,
        data_root=known.data_root,
        data_fingerprint=header.get("data_fingerprint"),
        tagger=known.tagger,
        selected_on=header["selected_on"],
    )
    return encoder, origin


def _published(source: str, file: Path | None) -> tuple[DualEncoder, ModelOrigin]:
    """A published CLIP, from a file or by its name, at the input of person retrieval; or that of IRRA or SEN."""
    name, _, tag_or_path = source.partition("/")
    name, tag_or_path = (name, tag_or_path) if file is None else (None, file)
    weights = find_weights(name, tag_or_path)
    clip = fit_clip(weights, name, image_size=None if weights.method else ModelConfig().image_size)
    encoder = DualEncoder(clip)
    fingerprint = weights_fingerprint(clip.state_dict()) + QUICK_GELU_SUFFIX * clip.config.quick_gelu
    vectors = vectors_fingerprint({"fingerprint": fingerprint} | encoder_header(encoder))
    # The trainers of published methods keep the epoch that is best on test.
    remark = f"in the format of the published code of {weights.method}, which chooses on test"
    origin = ModelOrigin(
        description=f"{source}, {remark if weights.method else 'not fine-tuned'}",
        fingerprint=fingerprint,
        vectors=vectors,
        selected_on="test" if weights.method else "none",
    )
    return encoder, origin
