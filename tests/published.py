"""The authors' tiny models: their weights, batches and numbers (tests/reference), and our modules under their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tiprctl.config import ObjectiveConfig
from tiprctl.models.clip import Clip, ClipConfig
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.weights import resize_positions
from tiprctl.objectives.composition import Composition

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
