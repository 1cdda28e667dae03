"""A miniature run that restores images, with the real vocabulary and random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image

from tiprctl.checkpoint import encoder_header, save_checkpoint
from tiprctl.config import ObjectiveConfig, to_dict
from tiprctl.models.clip import Clip
from tiprctl.models.encoder import DualEncoder
from tiprctl.objectives.composition import Composition
from tiprctl.tokenizer import default_tokenizer

TIR = ObjectiveConfig(name="tir", options={"depth": 1, "mask_ratio": 0.75})


def composition(*configs: ObjectiveConfig) -> Composition:
    """Images of 16 x 8 pixels in 4 x 2 patches."""
    clip = Clip(replace(tiny.CLIP, vocab_size=default_tokenizer().vocab_size))
    clip.initialise(torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Composition(DualEncoder(clip), configs or (TIR,), identities=3).eval()


def checkpoint(file: Path, *configs: ObjectiveConfig) -> Path:
    """The file of such a run."""
    trained = composition(*configs)
    header = {
        **encoder_header(trained.encoder),
        "config": to_dict(replace(tiny.recipe(), objectives=trained.configs)),
        "dataset": "synth-pedes",
        "epoch": 3,
        "selected_on": "val",
        "fingerprint": "none",
    }
    save_checkpoint(file, trained.state_dict(), header)
    return file


def crop(file: Path) -> Path:
    """A colourful image of the size that the model sees."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    return file
