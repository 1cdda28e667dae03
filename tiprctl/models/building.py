"""The dual encoder that a configuration asks for."""

from __future__ import annotations

import torch

from tiprctl.config import ModelConfig
from tiprctl.models.clip import Clip, named_size
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.weights import load_pretrained


def build_encoder(model: ModelConfig, generator: torch.Generator) -> DualEncoder:
    """A dual encoder as training starts with it: pretrained, or random from `generator`.

    Raises:
        UsageError: the size is unknown. InputError: the weights cannot be had.
    """
    if model.pretrained != "none":
        clip = load_pretrained(model.name, model.pretrained, image_size=model.image_size, stride=model.stride)
        return DualEncoder(clip, model.head)
    clip = Clip(named_size(model.name).with_input(model.image_size, model.stride))
    clip.initialise(generator)
    return DualEncoder(clip, model.head)
