"""Recipes as data: the encoder, objectives, schedule and augmentation of a method, and what its paper reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from tiprctl.config import (
    MOST_PHRASES,
    AugmentConfig,
    CaptionConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    SamplingConfig,
    TrainConfig,
)
from tiprctl.data.synth_pedes import SYNTH_PEDES
from tiprctl.errors import UsageError, unknown_name
from tiprctl.names import parse_names
from tiprctl.objectives import OBJECTIVES, find_objective

FIGURES = ("R@1", "R@5", "R@10", "mAP", "mINP")
"""The figures by which methods are compared, in percent, by the names of the field."""


@dataclass(frozen=True)
class Method:
    """How a method is trained, and the text-to-image figures that its paper reports, by data set.

    The figures are those of `FIGURES`, in percent, or as many of them as the paper gives; selected on the test split.
    """

    config: TrainConfig
    paper: str = ""
    reported: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


BASELINE = Method(
    TrainConfig(
        recipe="baseline",
        objectives=(ObjectiveConfig(name="sdm"), ObjectiveConfig(name="id")),
    )
)
"""SDM and identity loss on OpenAI's ViT-B/16 with the schedule that IRRA and SEN share."""

CLIP = Method(
    TrainConfig(
        recipe="clip",
        objectives=(ObjectiveConfig(name="itc", options={"temperature": 0.02}),),
    )
)
"""Plain contrastive fine-tuning under the same schedule, for comparison; the temperature starts where SDM's stays."""

IRRA = Method(
    TrainConfig(
        recipe="irra",
        objectives=(
            ObjectiveConfig(name="sdm"),
            ObjectiveConfig(name="id"),
            ObjectiveConfig(name="mlm", options={"ratio": 0.15, "depth": 4}),
        ),
        seed=1,
    ),
    paper="IRRA (CVPR 2023)",
    reported={
        "cuhk-pedes": (73.38, 89.93, 93.71, 66.13, 50.24),
        "icfg-pedes": (63.46, 80.25, 85.82, 38.06, 7.93),
        "rstpreid": (60.20, 81.30, 88.20, 47.17, 25.28),
    },
)
"""Masked language modelling beside SDM and identity loss."""

CFINE = Method(
    TrainConfig(
        recipe="cfine",
        objectives=(
            ObjectiveConfig(name="mgf", options={"later": 0.1, "diversity": 0.2}),
            ObjectiveConfig(name="cfr", weight=10.0, options={"temperature": 0.07, "margin": 0.2}),
            ObjectiveConfig(name="fcd", weight=10.0, options={"temperature": 0.01, "best": 3, "margin": 0.2}),
        ),
        model=ModelConfig(image_size=(224, 224), head="parts", head_options={"image_ratio": 0.1, "text_ratio": 0.2}),
        augment=AugmentConfig(flip=0.5, pad=0, erase=0.0),
        optim=OptimConfig(
            lr=1e-5,
            eps=1e-8,
            bias_factor=None,
            fresh_factor=10.0,
            warmup=10 / 50,
            warmup_start=0.01,
            schedule="steps",
            milestones=(20 / 50, 25 / 50, 35 / 50),
            gamma=0.1,
        ),
        epochs=50,
        batch_size=32,
        seed=42,
    ),
    paper="CFine (TIP 2023)",
    reported={
        "cuhk-pedes": (69.57, 85.93, 91.15),
        "icfg-pedes": (60.83, 76.55, 82.42),
        "rstpreid": (50.55, 72.50, 81.60),
    },
)
"""Features of salient parts beside the global ones, and similarities of patches and words that rank in training."""

SEN = Method(
    TrainConfig(
        recipe="sen",
        objectives=(
            ObjectiveConfig(name="sdm"),
            ObjectiveConfig(name="id"),
            ObjectiveConfig(name="tir", weight=10.0, options={"mask_ratio": 0.7, "depth": 4}),
            ObjectiveConfig(name="triplet", weight=10.0, options={"margin": 0.05}),
        ),
        captions=CaptionConfig(prune=0.2),
        sampling=SamplingConfig(sampler="pairs"),
        seed=42,
    ),
    paper="SEN (Neural Networks 2025)",
    reported={
        "cuhk-pedes": (75.00, 89.98, 94.09, 67.23, 51.45),
        "icfg-pedes": (64.56, 80.49, 85.88, 40.80, 9.51),
        "rstpreid": (61.60, 81.75, 88.05, 48.62, 26.43),
    },
)
"""Text-guided restoration of the image, a triplet loss, and captions pruned to what describes."""

SEN_XL = Method(
    replace(SEN.config, recipe="sen-xl", model=ModelConfig(name="ViT-L-14", image_size=(378, 126))),
    paper="SEN-XL (Neural Networks 2025)",
    reported={
        "cuhk-pedes": (76.64, 91.33, 94.66, 69.19, 53.88),
        "icfg-pedes": (66.76, 81.57, 86.55, 44.28, 12.26),
        "rstpreid": (62.70, 83.60, 89.15, 49.89, 27.56),
    },
)
"""SEN on ViT-L/14. Its patches of 14 pixels do not divide 384 x 128; 378 x 126 gives the same 27 x 9 of them."""

SCVD = Method(
    TrainConfig(
        recipe="scvd",
        objectives=(ObjectiveConfig(name="scvd"),),
        model=ModelConfig(head="division"),
        captions=CaptionConfig(phrases=MOST_PHRASES),
    ),
    paper="SCVD (TCSVT 2024)",
)
"""The image divided by the caption's phrases. Only the paper's abstract and fragments of its code are public: the
schedule is that of IRRA and SEN, and what else is our reading stands in docs/methods/scvd.md."""


def _as_published(config: TrainConfig, captions: CaptionConfig, **changes: Any) -> TrainConfig:
    """The method under the conditions of its published code, which its paper does not tell (docs/choices.md)."""
    objectives = tuple(
        replace(objective, options={**objective.options, "attend_padding": True})
        if objective.name in ("mlm", "tir")
        else objective
        for objective in config.objectives
    )
    augment = replace(config.augment, erase_fill="published")
    name = f"{config.recipe}-published"
    return replace(config, recipe=name, objectives=objectives, augment=augment, captions=captions, **changes)


IRRA_PUBLISHED = Method(_as_published(IRRA.config, CaptionConfig(mask_content=0.15, mask_other=0.15), batch_size=64))
SEN_PUBLISHED = Method(_as_published(SEN.config, CaptionConfig(prune=0.2, mask_content=0.30, mask_other=0.05)))

SYNTH = Method(
    TrainConfig(
        recipe="synth",
        objectives=(
            ObjectiveConfig(name="itc", options={"temperature": 0.03}),
            ObjectiveConfig(name="id"),
        ),
        model=ModelConfig(name="tiny", pretrained="none", image_size=(64, 32)),
        augment=AugmentConfig(flip=0.5, pad=2, jitter=0.05, erase=0.0),
        captions=CaptionConfig(mask_content=0.25, mask_other=0.25),
        sampling=SamplingConfig(bucket=32),
        optim=OptimConfig(
            name="adamw",
            lr=2e-3,
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.2,
            decay_vectors=False,
            bias_factor=1.0,
            fresh_factor=1.0,
            clip_norm=1.0,
            warmup=0.05,
            warmup_start=0.0,
            interval="step",
        ),
        epochs=15,
        batch_size=128,
        seed=0,
    )
)
"""A small encoder from random weights on the built-in data: what five minutes on two cores teach it.

Words are masked against learning captions by heart. Where bfloat16 is not native it takes longer, in float32.
"""

ON_SYNTH = replace(
    SYNTH.config,
    objectives=(
        ObjectiveConfig(name="itc", stop=0.5),
        ObjectiveConfig(name="sdm", start=0.5),
        ObjectiveConfig(name="id", start=0.5, weight=0.3),
    ),
    optim=replace(SYNTH.config.optim, lr=1e-3, weight_decay=0.05),
    captions=CaptionConfig(),
    epochs=7,
    batch_size=64,
    amp="off",
)
"""How methods are compared on the built-in data: contrast first, since SDM alone stalls near chance.

Shorter than SYNTH, since a step of some costs several times as much; in float32, so that figures of different machines
compare.
"""

SYNTH_WEIGHTS = MappingProxyType({"cfr": 0.01, "fcd": 0.01})
"""What objectives weigh in that comparison, where the weight of their paper leaves the others no say."""

METHODS = (BASELINE, CLIP, IRRA, IRRA_PUBLISHED, CFINE, SCVD, SEN, SEN_PUBLISHED, SEN_XL, SYNTH)

RECIPES = MappingProxyType({method.config.recipe: method.config for method in METHODS})

# Importance that the methods' authors give an objective, for where it is added by name alone.
DEFAULT_WEIGHTS = MappingProxyType(
    {objective.name: objective.weight for method in (IRRA, CFINE, SCVD, SEN) for objective in method.config.objectives}
)

# The methods that have a head of their own, by its name, for where an objective that needs it is added by name alone.
WITH_HEAD = MappingProxyType({method.config.model.head: method.config for method in (CFINE, SCVD)})


def published_rows(dataset: str) -> list[dict[str, Any]]:
    """What papers report for a data set, in the form of our own results."""
    return [
        {
            "model": method.paper,
            "direction": "text_to_image",
            "selected_on": "test",
            **dict(zip_longest(FIGURES, method.reported[dataset])),
        }
        for method in METHODS
        if dataset in method.reported
    ]


def check_names(recipe: str | None, losses: str | None, aux: str | None) -> None:
    """Refuse a recipe or an objective that does not exist, before any data are looked at.

    Raises:
        UsageError: a name is unknown (the choices are listed) or given twice.
    """
    if recipe is not None and recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    _objectives(losses or "", "--losses")
    _objectives(aux or "", "--aux")


def find_recipe(name: str | None, dataset: str) -> TrainConfig:
    """The recipe of that name, made fit for the built-in data; without a name, the one made for the data set."""
    if dataset == SYNTH_PEDES.name:
        return _on_synth(RECIPES[name]) if name not in (None, SYNTH.config.recipe) else SYNTH.config
    return RECIPES[name or BASELINE.config.recipe]


def _on_synth(method: TrainConfig) -> TrainConfig:
    """A method on the built-in data: the towers, schedule and weights of ON_SYNTH, its own head and captions.

    The contrast comes first, the method's objectives come second; a method of contrast alone has it throughout.
    """
    synth = ON_SYNTH
    contrast, *others = synth.objectives
    tuned = {objective.name: objective for objective in others}
    second = [
        tuned.get(objective.name, replace(objective, start=contrast.stop, weight=_synth_weight(objective)))
        for objective in method.objectives
        if objective.name != contrast.name
    ]
    objectives = (contrast, *second) if second else (replace(contrast, stop=1.0),)
    model = _with_head_of(method.model, synth.model)
    return replace(synth, recipe=method.recipe, objectives=objectives, model=model, captions=method.captions)


def _synth_weight(objective: ObjectiveConfig) -> float:
    return SYNTH_WEIGHTS.get(objective.name, objective.weight)


def _with_head_of(source: ModelConfig, model: ModelConfig) -> ModelConfig:
    return replace(model, head=source.head, head_options=source.head_options)


def with_objectives(config: TrainConfig, losses: str | None, aux: str | None) -> TrainConfig:
    """`config` with its objectives replaced by the comma-separated `losses` and extended by those of `aux`.

    Objectives that need a head bring it, set as in the method that it is of, and with it the phrases that this reads.

    Raises:
        UsageError: an objective is unknown or named twice, or two of them work on different heads.
    """
    chosen = (
        config.objectives
        if losses is None
        else tuple(_objective(config, name) for name in _objectives(losses, "--losses"))
    )
    present = {objective.name for objective in chosen}
    for name in _objectives(aux or "", "--aux"):
        if name in present:
            raise UsageError(
                f"The objective {name!r} is there already", where="--aux", remedy=f"Leave {name!r} out of --aux."
            )
        present.add(name)
        chosen = (*chosen, _objective(config, name))
    if not chosen:
        raise UsageError("No objective is left to train with", where="--losses", remedy="Name one, as in sdm,id.")
    return _fitted(replace(config, objectives=chosen))


def _fitted(config: TrainConfig) -> TrainConfig:
    """`config` with the head that its objectives need, and the phrases that go with it; as it is where any will do."""
    head = _needed_head(config.objectives)
    if head is None:
        return config
    method = WITH_HEAD.get(head, replace(config, model=ModelConfig(head=head)))
    model = config.model if config.model.head == head else _with_head_of(method.model, config.model)
    phrases = config.captions.phrases or method.captions.phrases
    return replace(config, model=model, captions=replace(config.captions, phrases=phrases))


def _needed_head(objectives: Iterable[ObjectiveConfig]) -> str | None:
    """The only head that the objectives can train; None: any.

    Raises:
        UsageError: two of them need different heads.
    """
    needing = [(each.name, head) for each in objectives if (head := find_objective(each.name).needs_head)]
    if not needing:
        return None
    (name, head), *others = needing
    for other, its in others:
        if its != head:
            raise UsageError(
                f"{name} needs the head {head}, and {other} the head {its}",
                where="objectives",
                remedy="Train with one of the two.",
            )
    return head


def _objectives(text: str, option: str) -> tuple[str, ...]:
    return parse_names(text, "objective", OBJECTIVES, where=option)


def _objective(config: TrainConfig, name: str) -> ObjectiveConfig:
    """The recipe's own settings of an objective, for the whole training, else its defaults."""
    for objective in config.objectives:
        if objective.name == name:
            return replace(objective, start=0.0, stop=1.0)
    return ObjectiveConfig(name=name, weight=DEFAULT_WEIGHTS.get(name, 1.0))
