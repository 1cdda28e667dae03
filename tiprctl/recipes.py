"""Recipes as data: the encoder, objectives, schedule and augmentation of a method, and what its paper reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tiprctl.config import AugmentConfig, ModelConfig, ObjectiveConfig, OptimConfig, SamplingConfig, TrainConfig
from tiprctl.errors import UsageError, unknown_name
from tiprctl.objectives import OBJECTIVES

FIGURES = ("R@1", "R@5", "R@10", "mAP", "mINP")
"""The figures by which methods are compared, in percent, by the names of the field."""


@dataclass(frozen=True)
class PublishedRow:
    """Text-to-image figures of a paper, in percent; None where the paper gives none. Selected on the test split.

    `recall` is R@1, R@5 and R@10.
    """

    method: str
    recall: tuple[float, float, float]
    mean_ap: float | None = None
    mean_inp: float | None = None

    def as_result(self) -> dict[str, Any]:
        """The row in the form of our own results."""
        figures = dict(zip(FIGURES, (*self.recall, self.mean_ap, self.mean_inp)))
        return {"model": self.method, "direction": "text_to_image", "selected_on": "test", **figures}


# Importance that the methods' authors or we give an objective when it is added by name alone.
DEFAULT_WEIGHTS = MappingProxyType({"triplet": 10.0})

BASELINE = TrainConfig(
    recipe="baseline",
    objectives=(ObjectiveConfig(name="sdm"), ObjectiveConfig(name="id")),
)
"""SDM and identity loss on OpenAI's ViT-B/16 with the schedule that IRRA and SEN share."""

SYNTH = TrainConfig(
    recipe="synth",
    objectives=(
        ObjectiveConfig(name="itc", stop=0.5),
        ObjectiveConfig(name="sdm", start=0.5),
        ObjectiveConfig(name="id", start=0.5, weight=0.3),
    ),
    model=ModelConfig(name="tiny", pretrained="none", image_size=(64, 32)),
    augment=AugmentConfig(flip=0.5, pad=2, jitter=0.05, erase=0.0),
    sampling=SamplingConfig(bucket=32),
    optim=OptimConfig(
        name="adamw",
        lr=1e-3,
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.05,
        decay_vectors=False,
        bias_factor=1.0,
        fresh_factor=1.0,
        clip_norm=1.0,
        warmup=0.05,
        warmup_start=0.0,
        interval="step",
    ),
    epochs=7,
    batch_size=64,
    seed=0,
)
"""A small encoder from random weights on the built-in data: contrast first, since SDM alone stalls near chance."""

RECIPES = MappingProxyType({config.recipe: config for config in (BASELINE, SYNTH)})

PUBLISHED = MappingProxyType(
    {
        "cuhk-pedes": (
            PublishedRow("IRRA (CVPR 2023)", (73.38, 89.93, 93.71), 66.13, 50.24),
            PublishedRow("CFine (TIP 2023)", (69.57, 85.93, 91.15)),
            PublishedRow("SEN (Neural Networks 2025)", (75.00, 89.98, 94.09), 67.23, 51.45),
            PublishedRow("SEN-XL (Neural Networks 2025)", (76.64, 91.33, 94.66), 69.19, 53.88),
        ),
        "icfg-pedes": (
            PublishedRow("IRRA (CVPR 2023)", (63.46, 80.25, 85.82), 38.06, 7.93),
            PublishedRow("CFine (TIP 2023)", (60.83, 76.55, 82.42)),
            PublishedRow("SEN (Neural Networks 2025)", (64.56, 80.49, 85.88), 40.80, 9.51),
            PublishedRow("SEN-XL (Neural Networks 2025)", (66.76, 81.57, 86.55), 44.28, 12.26),
        ),
        "rstpreid": (
            PublishedRow("IRRA (CVPR 2023)", (60.20, 81.30, 88.20), 47.17, 25.28),
            PublishedRow("CFine (TIP 2023)", (50.55, 72.50, 81.60)),
            PublishedRow("SEN (Neural Networks 2025)", (61.60, 81.75, 88.05), 48.62, 26.43),
            PublishedRow("SEN-XL (Neural Networks 2025)", (62.70, 83.60, 89.15), 49.89, 27.56),
        ),
    }
)


def check_names(recipe: str | None, losses: str | None, aux: str | None) -> None:
    """Refuse a recipe or an objective that does not exist, before any data are looked at.

    Raises:
        UsageError: a name is unknown (the choices are listed) or given twice.
    """
    if recipe is not None and recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    _names(losses or "")
    _names(aux or "")


def find_recipe(name: str | None, dataset: str) -> TrainConfig:
    """The recipe of that name; without a name, the one made for the data set."""
    return RECIPES[name or ("synth" if dataset == "synth-pedes" else "baseline")]


def with_objectives(config: TrainConfig, losses: str | None, aux: str | None) -> TrainConfig:
    """`config` with its objectives replaced by the comma-separated `losses` and extended by those of `aux`.

    Raises:
        UsageError: an objective is unknown or named twice.
    """
    chosen = config.objectives if losses is None else tuple(_objective(config, name) for name in _names(losses))
    present = {objective.name for objective in chosen}
    for name in _names(aux or ""):
        if name in present:
            raise UsageError(
                f"The objective {name!r} is there already", where="--aux", remedy=f"Leave {name!r} out of --aux."
            )
        present.add(name)
        chosen = (*chosen, _objective(config, name))
    if not chosen:
        raise UsageError("No objective is left to train with", where="--losses", remedy="Name one, as in sdm,id.")
    return replace(config, objectives=chosen)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OBJECTIVES:
            raise unknown_name("objective", name, OBJECTIVES)
        if names.count(name) > 1:
            raise UsageError(f"The objective {name!r} is named twice", remedy="Name each objective once.")
    return names


def _objective(config: TrainConfig, name: str) -> ObjectiveConfig:
    """The recipe's own settings of an objective, for the whole training, else its defaults."""
    for objective in config.objectives:
        if objective.name == name:
            return replace(objective, start=0.0, stop=1.0)
    return ObjectiveConfig(name=name, weight=DEFAULT_WEIGHTS.get(name, 1.0))
