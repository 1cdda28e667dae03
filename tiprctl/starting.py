"""What a training starts with: random or published weights, or those of a fine-tuned checkpoint."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiprctl.checkpoint import OBJECTIVES, load_encoder, read_checkpoint
from tiprctl.checkpoint_file import find_source, is_own, read_header
from tiprctl.config import ModelConfig, from_dict, to_dict
from tiprctl.errors import InputError
from tiprctl.models.bert_weights import find_sizes, load_bert
from tiprctl.models.clip import SIZES, Clip, ClipConfig, named_size
from tiprctl.models.encoder import DualEncoder, check_widths
from tiprctl.models.heads.base import Head
from tiprctl.models.heads.global_token import GlobalToken
from tiprctl.models.weights import (
    check_size,
    find_weights,
    fit_clip,
    is_tag,
    read_weights,
    refit_clip,
    size_name,
    sizes_of,
)
from tiprctl.objectives.base import Objective
from tiprctl.recipes import RECIPES


@dataclass(frozen=True)
class Start:
    """An encoder and, from a fine-tuned checkpoint, the weights of its objectives, `NAME.PARAMETER`; else None.

    `source` is the checkpoint; `data` the fingerprint of the data that it learnt from, where it tells.
    """

    encoder: DualEncoder
    objectives: Mapping[str, Tensor] | None = None
    source: str = ""
    data: str | None = None

    def load_objectives(self, objectives: Mapping[str, Objective], data: str) -> Iterator[tuple[str, str]]:
        """Give each objective the weights that the checkpoint has for it.

        Yields which ones keep random weights, and a remark why.

        Args:
            data: the fingerprint of the data to learn from.
        """
        if self.objectives is None:
            return
        for name, objective in objectives.items():
            own = f"{name}."
            held = {key.removeprefix(own): value for key, value in self.objectives.items() if key.startswith(own)}
            if obstacle := self._obstacle(objective, held, data):
                yield name, f"{name} starts from random weights: {self.source} {obstacle}"
            else:
                objective.load_state_dict(held)

    def _obstacle(self, objective: Objective, held: Mapping[str, Tensor], data: str) -> str | None:
        """Why the objective cannot take over what the checkpoint holds for it; None where it can."""
        wanted = objective.state_dict()
        if wanted and not held:
            return "has none for it"
        if objective.knows_people and self.data != data:
            return "learnt other identities" if self.data else "does not tell whose identities it learnt"
        return None if _shapes(held) == _shapes(wanted) else "has others for it"


def find_start(pretrained: str) -> Path | None:
    """The file that a training starts from; None for random weights and tags.

    Raises:
        UsageError, InputError: as `find_source`.
    """
    return None if pretrained == "none" or is_tag(pretrained) else find_source(pretrained)


def with_start(model: ModelConfig, pretrained: str) -> ModelConfig:
    """`model` starting from `pretrained`, with a fine-tuned checkpoint's size, input and text encoder.

    Raises:
        InputError: the checkpoint cannot be read, or its size has no name.
    """
    file = find_start(pretrained)
    model = replace(model, pretrained=pretrained if file is None else str(file))
    if file is None:
        return model
    if is_own(file):
        header = read_header(file)
        held = _model_of(header, file)
        sizes, name = ClipConfig.from_dict(header["clip"]), held.name
        model = replace(model, text_encoder=held.text_encoder)
    else:
        weights = read_weights(file)
        if not weights.method:
            return model
        sizes = sizes_of(weights)
        name = size_name(sizes)
    if name is None:
        raise InputError(
            "The checkpoint's encoder is of none of the known sizes",
            where=file,
            remedy=f"Start from one of: {', '.join(SIZES)}.",
        )
    stride = None if sizes.stride == sizes.patch_size else sizes.stride
    return replace(model, name=name, image_size=sizes.image_size, stride=stride)


def build_start(model: ModelConfig, generator: torch.Generator) -> Start:
    """What a configuration asks to start with; random weights are drawn from `generator`.

    Raises:
        UsageError: the size is unknown, or the towers' widths differ, which is told before weights are fetched.
        InputError: the weights cannot be had, or are of another size or head.
    """
    file = find_start(model.pretrained)
    if file is not None and is_own(file):
        return _continued(model, file)
    if model.bert:
        check_widths(find_sizes(model.bert).hidden_size, named_size(model.name).vision_width)
    if model.pretrained == "none":
        clip = Clip(named_size(model.name).with_input(model.image_size, model.stride))
        clip.initialise(generator)
        return Start(_encoder(clip, model))
    weights = find_weights(model.name, file or model.pretrained)
    clip = fit_clip(weights, model.name, image_size=model.image_size, stride=model.stride)
    return Start(_encoder(clip, model), weights.objectives if weights.method else None, model.pretrained)


def _encoder(clip: Clip, model: ModelConfig) -> DualEncoder:
    """The encoder that `model` asks for around a CLIP; a BERT comes with its published weights whatever CLIP's are."""
    bert = load_bert(model.bert) if model.bert else None
    return DualEncoder(clip, model.head, model.head_options, bert=bert)


def _continued(model: ModelConfig, file: Path) -> Start:
    """What a checkpoint that a run wrote holds, at the input of `model`; a head without weights gives way to any."""
    held, header = load_encoder(file)
    check_size(model.name, held.clip.config, file)
    _check_text_encoder(_model_of(header, file), model, file)
    clip = refit_clip(held.clip, model.image_size, model.stride)
    encoder = DualEncoder(clip, model.head, model.head_options, bert=held.bert)
    if weights := held.head.state_dict():
        _check_head(held.head, encoder.head, file)
        encoder.head.load_state_dict(weights)
    objectives, _ = read_checkpoint(file, OBJECTIVES)
    return Start(encoder, objectives, str(file), header.get("data_fingerprint"))


def _model_of(header: Mapping[str, Any], file: Path) -> ModelConfig:
    """The encoder that a checkpoint's run was configured with; what older versions did not tell has its default."""
    return from_dict(ModelConfig, header["config"]["model"], where=str(file))


def _check_text_encoder(held: ModelConfig, wanted: ModelConfig, file: Path) -> None:
    """Refuse a checkpoint whose captions are read by another tower than the one that is asked for."""
    if held.bert != wanted.bert:
        raise InputError(
            f"The checkpoint has the text encoder {held.text_encoder}, not {wanted.text_encoder}",
            where=file,
            remedy="Leave out --text-encoder, or start from other weights.",
        )


def _check_head(held: Head, wanted: Head, file: Path) -> None:
    """Refuse a head that is not the checkpoint's, or is set otherwise."""
    if held.name != wanted.name:
        fitting = " or ".join(dict.fromkeys((wanted.name, GlobalToken.name)))
        raise InputError(
            f"The checkpoint has the head {held.name}, not {wanted.name}",
            where=file,
            remedy=f"Start from a checkpoint with the head {fitting}, or train with {_bringing(held.name)}.",
        )
    asked = to_dict(wanted.config)
    others = {option: value for option, value in to_dict(held.config).items() if asked[option] != value}
    if others:
        differences = "; ".join(f"{option} {value}, not {asked[option]}" for option, value in others.items())
        values = (f"{held.name}.{option}={json.dumps(value)}" for option, value in others.items())
        settings = " ".join(f"--set {shlex.quote(value)}" for value in values)
        raise InputError(
            f"The checkpoint's head {held.name} has learnt with {differences}",
            where=file,
            remedy=f"Train with {settings}, or start from another checkpoint.",
        )


def _bringing(head: str) -> str:
    """The recipes that have a head, in words; without any, the setting that gives it."""
    recipes = [name for name, config in RECIPES.items() if config.model.head == head]
    return f"a recipe whose head is {head} ({', '.join(recipes)})" if recipes else f"--set model.head={head}"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
