"""The configuration of a training run: frozen, typed, validated at construction, saved with every checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tiprctl.errors import UsageError, unknown_name

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

BERT = "bert-base-uncased"
"""The BERT that CFine was published with, and the default."""
TEXT_ENCODER = "--text-encoder"
"""The option that chooses what reads the captions."""
MOST_PHRASES = 6
"""Phrases of a caption at most: SCVD sums its loss over one global and six local pairs."""

STRICT = ConfigDict(extra="forbid")
frozen = dataclass(frozen=True, kw_only=True, config=STRICT)


@frozen
class ModelConfig:
    """The dual encoder: a named size, where its weights start from, and what it sees.

    `pretrained` is `none` (random weights), a tag of open_clip's registry, or a checkpoint file.
    `text_encoder` is `clip`, or `bert`, which reads the captions instead of CLIP's text tower: bert-base-uncased, or
    with `bert:SOURCE` what a folder or a name on huggingface.co holds.
    `image_size` is (height, width) in pixels; `stride` None means the patch size. `head` names what makes features of
    the towers' tokens, with its `head_options`.

    Raises:
        UsageError: there is no such text encoder.
    """

    name: str = "ViT-B-16"
    pretrained: str = "openai"
    text_encoder: str = "clip"
    image_size: tuple[Count, Count] = (384, 128)
    stride: Count | None = None
    head: str = "global"
    head_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        kind, colon, source = self.text_encoder.partition(":")
        if kind not in ("clip", "bert") or (colon and (kind == "clip" or not source)):
            raise _unknown_text_encoder(self.text_encoder)

    @property
    def bert(self) -> str | None:
        """The folder or the name of the BERT that reads the captions; None where CLIP does."""
        kind, _, source = self.text_encoder.partition(":")
        return (source or BERT) if kind == "bert" else None


@frozen
class ObjectiveConfig:
    """One term of the training loss; active while `start <= steps done / steps in all < stop`."""

    name: str
    weight: NonNegative = 1.0
    start: Fraction = 0.0
    stop: Fraction = 1.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.start >= self.stop:
            raise ValueError(f"{self.name} would stop at {self.stop} before it starts at {self.start}")


@frozen
class AugmentConfig:
    """Random changes to the training images; the order of the fields is the order of application.

    `erase_fill`: `mean` hides a rectangle under the mean colour; `published` fills with the mean's numbers *after*
    normalisation, as the code of IRRA and SEN does (so not the mean colour). `erase_area`: the smallest and the
    largest share of the image that is hidden.
    """

    flip: Fraction = 0.5
    pad: Annotated[int, Field(ge=0)] = 10
    jitter: Fraction = 0.0
    erase: Fraction = 0.5
    erase_area: tuple[Fraction, Fraction] = (0.02, 0.4)
    erase_fill: Literal["mean", "published"] = "mean"

    def __post_init__(self) -> None:
        smallest, largest = self.erase_area
        if smallest > largest:
            raise ValueError(f"erase_area would go from {smallest} down to {largest}")


@frozen
class CaptionConfig:
    """Random changes to the training captions, drawn anew each time.

    `prune`: probability that a caption gives way to its pruned form, its nouns, adjectives and pronouns (SEN).
    `mask_content`, `mask_other`: probability that a token of a noun or adjective, and that any other token, is masked
    for every loss, as the published code of IRRA and SEN does and their papers do not say (docs/choices.md).
    `phrases`: how many noun phrases of each caption are read as prompts of their own, 0 for none (SCVD); those of the
    whole caption, whatever form is drawn.
    To prune, to mask the two unequally, and to read phrases takes the file that `tiprctl augment` makes.
    """

    prune: Fraction = 0.0
    mask_content: Fraction = 0.0
    mask_other: Fraction = 0.0
    phrases: Annotated[int, Field(ge=0, le=MOST_PHRASES)] = 0


@frozen
class SamplingConfig:
    """How captions are put into batches.

    `random`: captions in random order; `bucket` batches at a time are sorted by caption length, so that a batch holds
    captions of like length and its text pass is short; 1 switches that off. `identity`: batches of whole groups of
    `per_identity` captions of one identity. `pairs`: batches of half as many identities as `batch_size`, each with one
    or two of its captions (SEN's `idrannum`), so of three quarters of `batch_size` captions on average.
    """

    sampler: Literal["random", "identity", "pairs"] = "random"
    per_identity: Count = 4
    bucket: Count = 8


@frozen
class OptimConfig:
    """Optimiser and learning-rate schedule (METHODS: Adam 1e-5, warm-up 5 epochs from 0.1, cosine to 0, per epoch).

    `bias_factor` and `fresh_factor` multiply the learning rate of biases and of modules that do not come from the
    pretrained towers; without a `bias_factor` a bias has the rate of the weights beside it. Biases are never decayed,
    and vectors (norm gains, scalars) only with `decay_vectors`. `clip_norm` 0 switches gradient clipping off.

    After the warm-up the rate falls: `schedule` `cosine`, smoothly to 0; `steps`, to `gamma` times what it was, at each
    of the `milestones`. The warm-up and the milestones are fractions of the epochs; the milestones are CFine's.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: Positive = 1e-5
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-3
    weight_decay: NonNegative = 4e-5
    decay_vectors: bool = True
    bias_factor: Positive | None = 2.0
    fresh_factor: Positive = 5.0
    clip_norm: NonNegative = 0.0
    warmup: Fraction = 5 / 60
    warmup_start: Fraction = 0.1
    schedule: Literal["cosine", "steps"] = "cosine"
    milestones: tuple[Fraction, ...] = (20 / 50, 25 / 50, 35 / 50)
    gamma: Fraction = 0.1
    interval: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            raise ValueError(f"milestones do not rise: {', '.join(map(str, self.milestones))}")
        if self.schedule == "steps" and self.milestones and self.milestones[0] < self.warmup:
            raise ValueError(f"the milestone {self.milestones[0]} falls into the warm-up, which lasts to {self.warmup}")


@frozen
class TrainConfig:
    """Everything that decides what a run learns, except the data.

    `epochs` may be a fraction: the last epoch then ends early.
    """

    recipe: str
    objectives: tuple[ObjectiveConfig, ...]
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    captions: CaptionConfig = dataclasses.field(default_factory=CaptionConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    epochs: Positive = 60
    batch_size: Annotated[int, Field(ge=2)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    select_on: Literal["auto", "val", "test", "last"] = "auto"

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"an objective is named twice: {', '.join(sorted(twice))}")


PARTS = tuple(each.name for each in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(each.default_factory))
"""The parts of a `TrainConfig` that have fields of their own: `model`, `augment` and so on."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON-able values."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], values: dict[str, Any], *, where: str | None = None) -> T:
    """Build the configuration dataclass `kind` from plain values.

    Raises:
        UsageError: a value is unknown, missing, of the wrong type or out of range; every such value is named.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise _explain(error, where) from error


def override(config: T, changes: dict[str, Any]) -> T:
    """`config` with dotted fields replaced, as in `{"optim.lr": 1e-4}`; values that are None change nothing."""
    values = to_dict(config)
    for dotted, value in changes.items():
        if value is None:
            continue
        *parents, leaf = dotted.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        target[leaf] = value
    return from_dict(type(config), values)


def _explain(error: ValidationError, where: str | None) -> UsageError:
    """One readable line from pydantic's list of problems."""
    problems = "; ".join(_problem(item) for item in error.errors())
    return UsageError(f"Not a valid configuration: {problems}", where=where, remedy="Correct these values.")


def _unknown_text_encoder(name: str) -> UsageError:
    """What to say of a text encoder that there is none of; a folder is told how it is given."""
    if name and Path(name).expanduser().is_dir():
        return UsageError(
            f"There is no text encoder named {name!r}, but there is such a folder",
            where=TEXT_ENCODER,
            remedy=f"Give the BERT in it: {TEXT_ENCODER} bert:{name}",
        )
    error = unknown_name("text encoder", name, ("clip", "bert", "bert:FOLDER", "bert:NAME"))
    error.where = TEXT_ENCODER
    return error


def _problem(item: Mapping[str, Any]) -> str:
    """One of pydantic's problems, after its place where it has one; what our own checks say in their words alone."""
    place = ".".join(str(part) for part in item["loc"])
    what = item["ctx"]["error"] if item["type"] == "value_error" else item["msg"]
    return f"{place}: {what}" if place else str(what)
