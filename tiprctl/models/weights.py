"""Published CLIP weights, whatever file holds them, to a `Clip` of the wanted input size.

Nothing in a file is ever run: a TorchScript archive is read as a zip of tensors, a pickle may build tensors only.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tiprctl.errors import InputError, TiprError, UsageError
from tiprctl.models.clip import QUICK_GELU_SUFFIX, SIZES, Clip, ClipConfig, named_size
from tiprctl.models.registry import find_pretrained, registry_entry
from tiprctl.models.torchscript import is_torchscript, read_torchscript, refusal

HEAD_WIDTH = 64
PREFIXES = ("module.", "_orig_mod.", "base_model.")
"""What data-parallel training, `torch.compile` and the published person-retrieval models put before a tower's names."""
WRAPPERS = ("state_dict", "model")
OPENAI_FIGURES = frozenset({"input_resolution", "context_length", "vocab_size"})
IGNORED = OPENAI_FIGURES | {"logit_scale", "logit_bias", "attn_mask"}
"""Entries beside the towers: the temperature belongs to the losses, the rest to no model."""
POSITIONS = "visual.positional_embedding"


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint in OpenAI's names, float32; `is_openai`: in OpenAI's own format, so QuickGELU."""

    tensors: dict[str, Tensor]
    path: Path
    is_openai: bool


def load_pretrained(
    model_name: str | None,
    tag_or_path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
) -> Clip:
    """A CLIP with published weights, its position embedding resized to the input.

    Args:
        model_name: a name of `SIZES`; `-quickgelu` may be added to say that a local state dict wants QuickGELU (as
            open_clip names such models). None reads the sizes off a local file's tensors.
        tag_or_path: a tag of open_clip's registry, or a local file: OpenAI's archive, a state dict, safetensors.
        image_size: height and width in pixels; None is the size's own.
        stride: in pixels; None is the patch size.

    Raises:
        UsageError: the model or the tag is unknown. InputError: the weights cannot be had, read, or do not fit.
    """
    named = None if model_name is None else named_size(model_name)
    if _is_tag(tag_or_path):
        if model_name is None:
            raise UsageError(f"The tag {tag_or_path} needs the name of a model", remedy=f"Choices: {', '.join(SIZES)}.")
        quick_gelu = registry_entry(model_name, str(tag_or_path)).get("quick_gelu", False)
        weights = read_weights(find_pretrained(model_name, str(tag_or_path)))
    else:
        weights = read_weights(tag_or_path)
        quick_gelu = weights.is_openai
    config = replace(
        (named or sizes_of(weights)).with_input(image_size, stride),
        quick_gelu=quick_gelu or (model_name or "").endswith(QUICK_GELU_SUFFIX),
    )
    return build_clip(config, weights)


def read_weights(path: str | Path) -> Weights:
    """The tensors of a TorchScript archive, a state dict (also wrapped, also prefixed) or a safetensors file.

    Raises:
        InputError: the file is missing, damaged, holds no state dict, or would run code on loading.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("There is no such checkpoint", where=path, remedy="Give a file of weights.")
    try:
        is_archive = is_torchscript(path)
        if is_archive:
            loaded = read_torchscript(path)
        elif _is_safetensors(path):
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except TiprError:
        raise
    except Exception as error:  # what a damaged zip or pickle raises can be anything
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        raise (refusal(refused[1], path) if refused else _damaged(path, error)) from error
    tensors = _tidy(_unwrap(loaded, path))
    return Weights(tensors, path, is_openai=is_archive or tensors.keys() >= OPENAI_FIGURES)


def sizes_of(weights: Weights, *, vision_heads: int | None = None, text_heads: int | None = None) -> ClipConfig:
    """The sizes that the tensors' shapes tell, for the square image of pretraining; a head is 64 wide unless told.

    Raises:
        InputError: a tensor that tells a size is missing.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    telling = (
        "visual.conv1.weight",
        POSITIONS,
        "text_projection",
        "positional_embedding",
        "token_embedding.weight",
        "transformer.resblocks.0.ln_1.weight",
        "visual.transformer.resblocks.0.ln_1.weight",
    )
    _refuse_misfits(weights.path, missing=[name for name in telling if name not in shapes], unexpected=[])
    vision_width, _, _, patch = shapes["visual.conv1.weight"]
    text_width, embed_dim = shapes["text_projection"]
    side = math.isqrt(shapes[POSITIONS][0] - 1) * patch
    return ClipConfig(
        embed_dim=embed_dim,
        image_size=(side, side),
        patch_size=patch,
        stride=patch,
        vision_width=vision_width,
        vision_layers=_count_blocks(shapes, "visual.transformer.resblocks."),
        vision_heads=vision_heads or max(1, vision_width // HEAD_WIDTH),
        text_width=text_width,
        text_layers=_count_blocks(shapes, "transformer.resblocks."),
        text_heads=text_heads or max(1, text_width // HEAD_WIDTH),
        context_length=shapes["positional_embedding"][0],
        vocab_size=shapes["token_embedding.weight"][0],
        quick_gelu=weights.is_openai,
    )


def build_clip(config: ClipConfig, weights: Weights) -> Clip:
    """A CLIP of the given sizes that holds the weights, their position embedding resized to the input grid.

    Raises:
        InputError: names a tensor that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        clip = Clip(config)
    expected = clip.state_dict()
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in IGNORED}
    if POSITIONS in tensors:
        tensors[POSITIONS] = _fit_positions(tensors[POSITIONS], config)
    check_fit(expected, tensors, weights.path)
    clip.load_state_dict(tensors, assign=True)
    return clip


def resize_positions(positions: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """A position embedding `(1 + N, W)` of one grid (rows, columns) to that of another, `(1 + N', W)`.

    Bilinear, without aligned corners or antialiasing; the class token's row is kept (as IRRA's `resize_pos_embed`).
    """
    if source == target:
        return positions
    table = positions[1:].T.unflatten(1, source)[None]
    resized = F.interpolate(table, size=target, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


def _fit_positions(positions: Tensor, config: ClipConfig) -> Tensor:
    """The positions at the model's grid; as they are when no square grid explains their number."""
    n_patches = len(positions) - 1
    side = math.isqrt(max(n_patches, 0))
    if positions.ndim != 2 or n_patches < 1 or side * side != n_patches:
        return positions
    return resize_positions(positions, (side, side), config.grid)


def _is_tag(tag_or_path: str | Path) -> bool:
    path = Path(tag_or_path)
    return not (path.is_file() or path.suffix or len(path.parts) > 1)


def _count_blocks(names: Iterable[str], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).partition(".")[0]) for name in names if name.startswith(prefix))


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, also one that lies among a training run's other things."""
    while isinstance(loaded, dict) and any(isinstance(loaded.get(key), dict) for key in WRAPPERS):
        loaded = next(loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict))
    tensors = (
        {name: value for name, value in loaded.items() if isinstance(value, Tensor)} if isinstance(loaded, dict) else {}
    )
    if not tensors:
        raise InputError(
            "The file holds no state dict", where=path, remedy="Give a file that maps names to tensors, not a model."
        )
    return tensors


def _tidy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without known prefixes; floats as float32."""
    return {
        _strip_prefixes(name): tensor.float().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _strip_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare the tensors of a file with those that a model expects.

    Raises:
        InputError: names the tensors that are missing or unexpected, or the first of another shape.
    """
    _refuse_misfits(path, missing=expected.keys() - tensors.keys(), unexpected=tensors.keys() - expected.keys())
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"The checkpoint does not fit the model: {name} is {tuple(tensor.shape)}, "
                f"expected {tuple(expected[name].shape)}",
                where=path,
                remedy="Name the model that the checkpoint was made for (--model).",
            )


def _refuse_misfits(path: Path, *, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    complaints = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", sorted(missing)), ("unexpected", sorted(unexpected)))
        if names
    ]
    if complaints:
        raise InputError(
            f"The checkpoint's tensors are not those of the model: {', '.join(complaints)}",
            where=path,
            remedy="Give CLIP weights with a vision transformer, in OpenAI's or open_clip's names, of the model named.",
        )


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return InputError(
        f"The checkpoint cannot be read: {reason}",
        where=path,
        remedy="It may be damaged or incomplete: fetch it again.",
    )


def _is_safetensors(path: Path) -> bool:
    """Whether the file opens as safetensors does: the length of the header, then its JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
