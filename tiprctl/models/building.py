"""What a training starts with: random or published weights, or those of a fine-tuned checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tiprctl.checkpoint import OBJECTIVES, is_own, load_encoder, read_checkpoint
from tiprctl.config import ModelConfig
from tiprctl.errors import InputError
from tiprctl.models.clip import Clip, named_size
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.weights import check_size, find_weights, fit_clip, refit_clip
from tiprctl.sources import find_start


@dataclass(frozen=True)
class Start:
    """An encoder and, from a fine-tuned checkpoint, the weights of its objectives, `NAME.PARAMETER`; else None."""

    encoder: DualEncoder
    objectives: Mapping[str, Tensor] | None = None
    source: str = ""

    def load_objectives(self, objectives: Mapping[str, nn.Module]) -> Iterator[str]:
        """Give each objective the weights that the checkpoint has for it; says which keep their random ones, and why."""
        if self.objectives is None:
            return
        for name, objective in objectives.items():
            own = f"{name}."
            held = {key.removeprefix(own): value for key, value in self.objectives.items() if key.startswith(own)}
            wanted = objective.state_dict()
            if _shapes(held) == _shapes(wanted):
                objective.load_state_dict(held)
            elif wanted:
                lack = "has others for it" if held else "has none for it"
                yield f"{name} starts from random weights: {self.source} {lack}"


def build_start(model: ModelConfig, generator: torch.Generator) -> Start:
    """What a configuration asks to start with; random weights are drawn from `generator`.

    Raises:
        UsageError: the size is unknown. InputError: the weights cannot be had, or are of another size or head.
    """
    if model.pretrained == "none":
        clip = Clip(named_size(model.name).with_input(model.image_size, model.stride))
        clip.initialise(generator)
        return Start(DualEncoder(clip, model.head))
    file = find_start(model.pretrained)
    if file is not None and is_own(file):
        return _continued(model, file)
    weights = find_weights(model.name, file or model.pretrained)
    clip = fit_clip(weights, model.name, image_size=model.image_size, stride=model.stride)
    # The training heads of IRRA and SEN are not taken over, so that every objective lacks its weights.
    return Start(DualEncoder(clip, model.head), {} if weights.method else None, model.pretrained)


def _continued(model: ModelConfig, file: Path) -> Start:
    """What a checkpoint that a run wrote holds, at the input of `model`."""
    encoder, _ = load_encoder(file)
    check_size(model.name, encoder.clip.config, file)
    if encoder.head.name != model.head:
        raise InputError(
            f"The checkpoint has the head {encoder.head.name}, not {model.head}",
            where=file,
            remedy="Start from a checkpoint with that head, or choose a recipe with this one.",
        )
    encoder.clip = refit_clip(encoder.clip, model.image_size, model.stride)
    objectives, _ = read_checkpoint(file, OBJECTIVES)
    return Start(encoder, objectives, str(file))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
