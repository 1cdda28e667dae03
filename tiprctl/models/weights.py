"""Published CLIP weights, and those of IRRA and SEN, whatever file holds them, to a `Clip` of the wanted input size.

Nothing in a file is ever run: a TorchScript archive is read as a zip of tensors, a pickle may build tensors only.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tiprctl.errors import InputError, TiprError, UsageError
from tiprctl.models.clip import HEAD_WIDTH, QUICK_GELU_SUFFIX, SIZES, Clip, ClipConfig, named_size
from tiprctl.models.registry import find_pretrained, registry_entry
from tiprctl.models.torchscript import is_torchscript, read_torchscript, refusal

PREFIXES = ("module.", "_orig_mod.")
"""What data-parallel training and `torch.compile` put before a model's names."""
TOWERS = "base_model."
"""What the published person-retrieval models put before the names of the towers, and of nothing else."""
RETRIEVAL_HEADS = (("decoder_pred.", "SEN"), ("mlm_head.", "IRRA"), ("", "IRRA or SEN"))
"""Whose training heads lie beside the towers, by the beginning of a name: the first that occurs tells."""
OBJECTIVES = {
    "classifier.": "id.classifier.",
    "ln_pre_t.": "mlm.cross.ln_query.",
    "ln_pre_i.": "mlm.cross.ln_context.",
    "cross_attn.": "mlm.cross.attn.",
    "cross_modal_transformer.": "mlm.transformer.",
    "ln_post.": "mlm.ln_post.",
    "mlm_head.": "mlm.head.",
    "mask_token": "tir.mask_token.weight",
    "norm_1.": "tir.ln_visible.",
    "norm_2.": "tir.cross.ln_context.",
    "norm_4.": "tir.cross.ln_query.",
    "norm_6.": "tir.ln_attended.",
    "norm_7.": "tir.ln_post.",
    "decoder_embed.": "tir.embed.",
    "decoder_pred.": "tir.pixels.",
    "cross_attn_Text.": "tir.cross.attn.",
    "cross_modal_transformer_mae.": "tir.transformer.",
}
"""How the training heads of IRRA and SEN begin in their names, and in those of our objectives; the rest is one."""
RETRIEVAL_INPUTS = ((384, 128), (256, 128))
"""Heights and widths, in pixels, that person-retrieval models are trained at, beside square ones."""
WRAPPERS = ("state_dict", "model")
OPENAI_FIGURES = frozenset({"input_resolution", "context_length", "vocab_size"})
IGNORED = OPENAI_FIGURES | {"logit_scale", "logit_bias", "attn_mask"}
"""Entries beside the towers: the temperature belongs to the losses, the rest to no model."""
POSITIONS = "visual.positional_embedding"


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint's towers in OpenAI's names, float32.

    `quick_gelu`: the format tells that they want QuickGELU. `method`: whose published code wrote the checkpoint, as in
    `RETRIEVAL_HEADS`; None where it is no checkpoint of person retrieval. `objectives`: the tensors of its training
    heads as `OBJECTIVE.PARAMETER`, as far as they are known.
    """

    tensors: dict[str, Tensor]
    path: Path
    quick_gelu: bool
    method: str | None = None
    objectives: dict[str, Tensor] = field(default_factory=dict)


def load_pretrained(
    model_name: str | None,
    tag_or_path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
) -> Clip:
    """A CLIP with published weights, its position embedding resized to the input.

    See `find_weights` and `fit_clip` for the arguments and errors.
    """
    return fit_clip(find_weights(model_name, tag_or_path), model_name, image_size=image_size, stride=stride)


def find_weights(model_name: str | None, tag_or_path: str | Path) -> Weights:
    """The weights of a tag of open_clip's registry, or of a local file: see `read_weights`.

    Raises:
        UsageError: the model or the tag is unknown. InputError: the weights cannot be had or read.
    """
    if not is_tag(tag_or_path):
        return read_weights(tag_or_path)
    if model_name is None:
        raise UsageError(f"The tag {tag_or_path} needs the name of a model", remedy=f"Choices: {', '.join(SIZES)}.")
    named_size(model_name)
    quick_gelu = registry_entry(model_name, str(tag_or_path)).get("quick_gelu", False)
    return replace(read_weights(find_pretrained(model_name, str(tag_or_path))), quick_gelu=quick_gelu)


def fit_clip(
    weights: Weights,
    model_name: str | None,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
) -> Clip:
    """A CLIP with these weights, its position embedding resized to the input.

    Args:
        model_name: a name of `SIZES`; `-quickgelu` may be added to say that a state dict wants QuickGELU (as open_clip
            names such models). None reads the sizes off the tensors.
        image_size: height and width in pixels; None is the checkpoint's own for IRRA and SEN, else the size's own.
        stride: in pixels; None is the patch size, or with the checkpoint's own input its own.

    Raises:
        UsageError: the model is unknown. InputError: the weights are of another size, or incomplete.
    """
    told = config = sizes_of(weights)
    if model_name is not None:
        check_size(model_name, told, weights.path)
        config = named_size(model_name)
    if weights.method and image_size is None:
        config = config.with_input(told.image_size, stride or told.stride)
    else:
        config = config.with_input(image_size, stride or config.patch_size)
    quick_gelu = weights.quick_gelu or (model_name or "").endswith(QUICK_GELU_SUFFIX)
    return build_clip(replace(config, quick_gelu=quick_gelu), weights)


def _core(sizes: ClipConfig) -> ClipConfig:
    """The sizes that a checkpoint's tensors fix: without the input, the GELU and the number of attention heads."""
    patch = sizes.patch_size
    return replace(sizes, image_size=(patch, patch), stride=patch, quick_gelu=True, vision_heads=1, text_heads=1)


def _alike(known: ClipConfig, sizes: ClipConfig) -> ClipConfig:
    """The known sizes, of the image tower alone where `sizes` has no other."""
    return known if sizes.text_tower else known.image_alone()


def size_name(sizes: ClipConfig) -> str | None:
    """The name of these sizes in `SIZES`, whatever the input and the GELU; None where they have none."""
    return next((name for name, known in SIZES.items() if _core(_alike(known, sizes)) == _core(sizes)), None)


def check_size(model_name: str, sizes: ClipConfig, path: Path) -> None:
    """Refuse a checkpoint of other sizes than those that a name of `SIZES` asks for; the input may differ.

    Raises:
        UsageError: there is no such name. InputError: names both.
    """
    if _core(_alike(named_size(model_name), sizes)) != _core(sizes):
        raise InputError(
            f"The checkpoint holds {size_name(sizes) or 'a size without a name'}, not {model_name}",
            where=path,
            remedy="Name the size that it holds (--model), or give other weights.",
        )


def refit_clip(clip: Clip, image_size: tuple[int, int], stride: int | None) -> Clip:
    """The same weights for another input, in pixels; the position embedding is resized. Stride None: the patch size."""
    config = clip.config.with_input(image_size, stride or clip.config.patch_size)
    if config == clip.config:
        return clip
    tensors = clip.state_dict()
    tensors[POSITIONS] = resize_positions(tensors[POSITIONS], clip.config.grid, config.grid)
    resized = _empty_clip(config)
    resized.load_state_dict(tensors, assign=True)
    return resized


def read_weights(path: str | Path) -> Weights:
    """The tensors of a TorchScript archive, a state dict (also wrapped, also prefixed) or a safetensors file.

    Of a checkpoint of IRRA or SEN the towers, `base_model.*`, apart from the training heads.

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
    towers = {name.removeprefix(TOWERS): tensor for name, tensor in tensors.items() if name.startswith(TOWERS)}
    if towers:
        method = next(method for head, method in RETRIEVAL_HEADS if any(name.startswith(head) for name in tensors))
        return Weights(towers, path, quick_gelu=True, method=method, objectives=_objectives(tensors))
    return Weights(tensors, path, quick_gelu=is_archive or tensors.keys() >= OPENAI_FIGURES)


def _objectives(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The training heads of IRRA and SEN in our names; a mask token `(1, 1, W)` becomes `(1, W)`."""
    return {
        ours + name.removeprefix(theirs): tensor[0] if tensor.ndim == 3 else tensor
        for name, tensor in tensors.items()
        for theirs, ours in OBJECTIVES.items()
        if name.startswith(theirs)
    }


def sizes_of(weights: Weights, *, vision_heads: int | None = None, text_heads: int | None = None) -> ClipConfig:
    """The sizes that the tensors' shapes tell; an attention head is `HEAD_WIDTH` wide unless told.

    The input is what explains the number of positions: the square image of pretraining, or one of `RETRIEVAL_INPUTS`;
    where nothing does, a single patch.

    Raises:
        InputError: a tensor that tells a size is missing, or IRRA's or SEN's input cannot be told.
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
    sizes = ClipConfig(
        embed_dim=embed_dim,
        image_size=(patch, patch),
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
        quick_gelu=weights.quick_gelu,
    )
    patches = shapes[POSITIONS][0] - 1
    found = _input_of(sizes, patches)
    if found is None and weights.method:
        inputs = ", ".join(f"{height} x {width}" for height, width in RETRIEVAL_INPUTS)
        raise InputError(
            f"The checkpoint is made for {patches} patches of {patch} pixels: "
            f"no image of {inputs} or a square has so many",
            where=weights.path,
            remedy="Give a checkpoint that was trained on such images.",
        )
    return found or sizes


def build_clip(config: ClipConfig, weights: Weights) -> Clip:
    """A CLIP of the given sizes that holds the weights, their position embedding resized to the input grid.

    Raises:
        InputError: names a tensor that is missing, unexpected or of another shape.
    """
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in IGNORED}
    if POSITIONS in tensors:
        tensors[POSITIONS] = _fit_positions(tensors[POSITIONS], config)
    clip = _empty_clip(config)
    check_fit(clip.state_dict(), tensors, weights.path)
    clip.load_state_dict(tensors, assign=True)
    return clip


def _empty_clip(config: ClipConfig) -> Clip:
    """A CLIP whose weights are still to be assigned."""
    with torch.device("meta"):
        return Clip(config)


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
    """The positions at the model's grid; as they are when no known grid explains their number."""
    source = _input_of(config, len(positions) - 1)
    if positions.ndim != 2 or source is None:
        return positions
    return resize_positions(positions, source.grid, config.grid)


def _input_of(sizes: ClipConfig, patches: int) -> ClipConfig | None:
    """The sizes at the input that so many patches come from: a square image, or else one of `RETRIEVAL_INPUTS`.

    Of several strides that explain the number, the largest.
    """
    patch, side = sizes.patch_size, math.isqrt(max(patches, 0))
    if side and side * side == patches:
        return sizes.with_input((side * patch, side * patch), patch)
    strides = range(patch, 0, -1)
    inputs = (sizes.with_input(size, stride) for stride in strides for size in RETRIEVAL_INPUTS if min(size) >= patch)
    return next((one for one in inputs if math.prod(one.grid) == patches), None)


def is_tag(tag_or_path: str | Path) -> bool:
    """Whether it can only be a tag of open_clip's registry, not a path."""
    path = Path(tag_or_path)
    return not (path.exists() or path.suffix or len(path.parts) > 1)


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
