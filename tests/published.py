"""The authors' tiny models: their weights, batches and numbers (tests/reference), and our modules under their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from tiprctl.config import ObjectiveConfig
from tiprctl.models.clip import Clip, ClipConfig
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import Encodings
from tiprctl.models.weights import resize_positions
from tiprctl.objectives.composition import Composition
from tiprctl.recipes import RECIPES

REFERENCE = Path(__file__).parent / "reference"
IDENTITIES = 9
TOWERS = {"base_model.": "encoder.clip.", "classifier.": "objectives.id.classifier."}
"""Prefixes of parameters in the authors' names, and in those of a composition."""
SEN = TOWERS | {
    "mask_token": "objectives.tir.mask_token.weight",
    "norm_1.": "objectives.tir.ln_visible.",
    "norm_2.": "objectives.tir.cross.ln_context.",
    "norm_4.": "objectives.tir.cross.ln_query.",
    "norm_6.": "objectives.tir.ln_attended.",
    "norm_7.": "objectives.tir.ln_post.",
    "decoder_embed.": "objectives.tir.embed.",
    "decoder_pred.": "objectives.tir.pixels.",
    "cross_attn_Text.": "objectives.tir.cross.attn.",
    "cross_modal_transformer_mae.": "objectives.tir.transformer.",
}
IRRA = TOWERS | {
    "ln_pre_t.": "objectives.mlm.cross.ln_query.",
    "ln_pre_i.": "objectives.mlm.cross.ln_context.",
    "ln_post.": "objectives.mlm.ln_post.",
    "cross_attn.": "objectives.mlm.cross.attn.",
    "cross_modal_transformer.": "objectives.mlm.transformer.",
    "mlm_head.": "objectives.mlm.head.",
}
SEN_UNUSED = ("cross_attn_TextImage.", "cross_attn_Image.", "norm_3.", "norm_5.", "decoder_pos_embed")
"""What SEN's model holds and its loss never reads."""


def arrays(name: str) -> dict[str, Tensor]:
    """The tensors of tests/reference/NAME.npz."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def clip(image_size: tuple[int, int] = (384, 128), stride: int = 16) -> Clip:
    """The authors' tiny CLIP, its positions resized to the input."""
    config = ClipConfig(
        embed_dim=128,
        image_size=image_size,
        patch_size=16,
        stride=stride,
        vision_width=128,
        vision_layers=2,
        vision_heads=2,
        text_width=64,
        text_layers=2,
        text_heads=1,
        vocab_size=512,
    )
    state = arrays("clip_tiny_state")
    del state["logit_scale"]
    positions = state["visual.positional_embedding"]
    model = Clip(config)
    model.load_state_dict(state | {"visual.positional_embedding": resize_positions(positions, (14, 14), config.grid)})
    return model.eval()


def outputs(reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What came of the authors' forward pass, by their names."""
    return {key.removeprefix("forward."): value for key, value in reference.items() if key.startswith("forward.")}


@dataclass(frozen=True)
class Step:
    """One forward and backward pass of a published recipe: all that it gave, and the captions that it encoded.

    `found` has the figures that every method of the authors returns, by their names.
    """

    model: Composition
    enc: Encodings
    texts: list[Tensor]
    found: dict[str, Tensor]


def step(
    recipe: str,
    prefixes: Mapping[str, str],
    reference: Mapping[str, Tensor],
    their_losses: Mapping[str, str],
    drawn: Mapping[str, object],
) -> Step:
    """A step of `recipe` with the authors' weights and batch.

    `their_losses` are their names of our objectives' losses; `drawn` the values, by the path of the function that
    returns them, that replace what is drawn at random or follows from it.
    """
    objectives = [
        replace(objective, options=objective.options | {"depth": 2}) if "depth" in objective.options else objective
        for objective in RECIPES[recipe].objectives
    ]
    model, seen = composition(prefixes, reference, *objectives), []
    model.objectives["sdm"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = tiny.NoiseBatch(reference["images"], reference["caption_ids"], reference["pids"])
    with pytest.MonkeyPatch.context() as monkeypatch:
        for path, value in drawn.items():
            monkeypatch.setattr(path, lambda *_, value=value, **__: value)
        passes = tiny.tower_passes(monkeypatch)
        losses = model(batch, 0.0, torch.Generator())
    losses.total.backward()
    (enc,), classifier = seen, model.objectives["id"].classifier
    found = {
        "total_loss": losses.total.detach(),
        "num_classes": torch.tensor(classifier.out_features),
        "ret.temperature": torch.tensor(model.objectives["sdm"].config.temperature),
        "ret.img_acc": (classifier(enc.image).argmax(1) == batch.pids).float().mean(),
        "ret.txt_acc": (classifier(enc.text).argmax(1) == batch.pids).float().mean(),
    }
    for objective in objectives:
        found[f"ret.{their_losses[objective.name]}_loss"] = objective.weight * losses.parts[objective.name]
    return Step(model, enc, passes["encode_text"], found)


def composition(prefixes: Mapping[str, str], state: Mapping[str, Tensor], *objectives: ObjectiveConfig) -> Composition:
    """The tiny CLIP with these objectives, which hold the `state.*` of the authors' model."""
    model = Composition(DualEncoder(clip()), objectives, identities=IDENTITIES)
    theirs = {key.removeprefix("state."): value for key, value in state.items() if key.startswith("state.")}
    own = model.state_dict()
    missing, unexpected = model.load_state_dict(
        {(name := ours(key, prefixes)): value.view(own[name].shape) for key, value in theirs.items()}, strict=False
    )
    assert not unexpected
    assert all(name.startswith("encoder.") for name in missing)
    return model


def ours(name: str, prefixes: Mapping[str, str]) -> str:
    """The authors' name of a parameter as ours."""
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[prefix] + name.removeprefix(prefix)


def assert_gradients(model: Composition, reference: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> None:
    """Every parameter that the authors' model trains has their gradient norm, and we have no other."""
    expected = {key.removeprefix("gradnorm."): value for key, value in reference.items() if key.startswith("gradnorm.")}
    expected = {ours(name, prefixes): value.item() for name, value in expected.items() if not value.isnan()}
    found = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    deviations = {name: abs(found[name] / expected[name] - 1) for name in expected}
    assert {name: value for name, value in deviations.items() if value > 1e-3} == {}
