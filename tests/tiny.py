"""The smallest encoder and recipe that tests train, and batches of noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tiprctl.checkpoint import encoder_header, save_checkpoint
from tiprctl.config import ObjectiveConfig, TrainConfig, override, to_dict
from tiprctl.data.manifest import Manifest
from tiprctl.models.clip import Clip, ClipConfig
from tiprctl.models.encoder import DualEncoder
from tiprctl.prompts import Prompts
from tiprctl.recipes import RECIPES
from tiprctl.runs import BEST, RESULT, RUN, write_json
from tiprctl.shares import Share

CLIP = ClipConfig(
    embed_dim=16,
    image_size=(16, 8),
    patch_size=4,
    stride=4,
    vision_width=16,
    vision_layers=1,
    vision_heads=2,
    text_width=16,
    text_layers=1,
    text_heads=2,
    vocab_size=100,
)


def encoder(seed: int = 0, head: str = "global") -> DualEncoder:
    clip = Clip(CLIP)
    clip.initialise(torch.Generator().manual_seed(seed))
    return DualEncoder(clip, head)


def checkpoint(manifest: Manifest, file: Path, head: str = "global", seed: int = 0, **further: object) -> str:
    """The name of a file written as a training on this data would write it, with random weights; `further` header."""
    clip = Clip(replace(CLIP, vocab_size=49408))
    clip.initialise(torch.Generator().manual_seed(0))
    encoder = DualEncoder(clip, head)
    header = {"config": to_dict(recipe(seed=seed)), "epoch": 1, "selected_on": "val", "fingerprint": "abc"}
    header |= {"dataset": manifest.dataset, "data_root": str(manifest.root), **further}
    header |= {"data_fingerprint": manifest.fingerprint} | encoder_header(encoder)
    save_checkpoint(file, {f"encoder.{name}": value for name, value in encoder.state_dict().items()}, header)
    return file.name


def run_folder(folder: Path, encoder: DualEncoder, fingerprint: str = "abc") -> Path:
    """A finished run's folder as `tiprctl train` would leave it, with this encoder."""
    info = {"config": to_dict(recipe()), "dataset": "d", "data_root": "data/d", "data_fingerprint": "f"}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, info)
    write_json(folder / RESULT, {"finished": "2026-01-01T00:00:00+00:00"})
    header = info | {"epoch": 1, "selected_on": "val", "fingerprint": fingerprint} | encoder_header(encoder)
    save_checkpoint(folder / BEST, {f"encoder.{name}": value for name, value in encoder.state_dict().items()}, header)
    return folder


def readable(seed: int = 0, head: str = "global") -> DualEncoder:
    """As `encoder`, with the vocabulary of CLIP's tokenizer."""
    clip = Clip(replace(CLIP, vocab_size=49408))
    clip.initialise(torch.Generator().manual_seed(seed))
    return DualEncoder(clip, head)


@dataclass
class NoiseBatch:
    pixels: Tensor
    token_ids: Tensor
    pids: Tensor
    token_labels: Tensor | None = None
    prompts: Prompts | None = None
    share: Share | None = None

    def __post_init__(self):
        self.share = self.share or Share.whole(len(self.pids))


def batch(size: int = 6, length: int = 9, seed: int = 0) -> NoiseBatch:
    """Noise of two captions a person; each caption has three of the four prompts."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = _captions(size, length, generator)
    pixels = torch.randn(size, 3, *CLIP.image_size, generator=generator)
    index = torch.arange(size * 3).view(size, 3) % 4
    prompts = Prompts(_captions(4, 7, generator), index, torch.ones_like(index, dtype=torch.bool))
    return NoiseBatch(pixels, token_ids, torch.arange(size) // 2, prompts=prompts)


def _captions(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Words of noise between the marks of start and end, `(count, length)`."""
    token_ids = torch.randint(1, 98, (count, length), generator=generator)
    token_ids[:, 0], token_ids[:, -1] = 98, 99
    return token_ids


def recipe(**changes: object) -> TrainConfig:
    """The built-in recipe in float32 with whole captions, cut down to a miniature that a test trains in a second."""
    whole = {"captions.mask_content": 0.0, "captions.mask_other": 0.0, "amp": "off"}
    config = override(RECIPES["synth"], {"batch_size": 4, "epochs": 2, "sampling.bucket": 2, **whole, **changes})
    return override(config, {"model.image_size": (16, 8)})


def objectives(*names: str) -> tuple[ObjectiveConfig, ...]:
    return tuple(ObjectiveConfig(name=name) for name in names)


def tower_passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """What goes into `Clip.encode_image` and `Clip.encode_text` from now on, in order, by the method's name."""
    passes: dict[str, list[Tensor]] = {"encode_image": [], "encode_text": []}
    for name, inputs in passes.items():
        original = getattr(Clip, name)

        def spy(self, first, *args, inputs=inputs, original=original, **kwargs):
            inputs.append(first)
            return original(self, first, *args, **kwargs)

        monkeypatch.setattr(Clip, name, spy)
    return passes
