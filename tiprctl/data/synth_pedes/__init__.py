"""`synth-pedes`, the built-in data set: pedestrians drawn procedurally and described in English.

There are two of it, the usual one and a hard one of look-alikes, in folders of their own. This module says what it is,
without importing what draws it: `drawing` puts it on disk in the layout of CUHK-PEDES, so that the reader of the real
set reads it; `oracle` measures how hard it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import tiprctl
from tiprctl.data import cuhk_pedes
from tiprctl.data.records import DataSet
from tiprctl.errors import UsageError

IMAGES_PER_PERSON, CAPTIONS_PER_IMAGE = 4, 2

IMAGES, ANNOTATIONS, ATTRIBUTE_FILE = "imgs", "reid_raw.json", "attributes.json"

COMMANDS = {"synth-pedes": "tiprctl prepare synth-pedes", "synth-pedes-hard": "tiprctl prepare synth-pedes --hard"}
"""What draws the data set, by the folder that it stands in."""

SYNTH_PEDES, SYNTH_PEDES_HARD = (
    DataSet(
        name="synth-pedes",
        folder=folder,
        annotations=(ANNOTATIONS,),
        read=cuhk_pedes.read,
        source=f"`{command}` draws it",
    )
    for folder, command in COMMANDS.items()
)


@dataclass(frozen=True)
class Drawing:
    """The arguments that decide every byte of a drawn data set.

    Args:
        ids: number of training identities, each with four images and two captions an image.
        val_ids: number of identities for model selection.
        test_ids: number of identities for the final figures.
        seed: seed of everything random.
        hard: identities in families of look-alikes, and captions that are longer, tell nearly everything that is
            seen, and are wrong more often.

    Raises:
        UsageError: a number is negative, or there is nobody to draw.
    """

    ids: int = 3000
    val_ids: int = 100
    test_ids: int = 200
    seed: int = 0
    hard: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} must not be negative: {value}", remedy="Give a number from 0 up.")
        if not self.images:
            raise UsageError("There is nobody to draw", remedy="Give --ids, --val-ids or --test-ids a positive number.")

    @property
    def dataset(self) -> DataSet:
        """Which of the two it draws."""
        return SYNTH_PEDES_HARD if self.hard else SYNTH_PEDES

    @property
    def images(self) -> int:
        """Images in all splits."""
        return (self.ids + self.val_ids + self.test_ids) * IMAGES_PER_PERSON

    @property
    def record(self) -> dict[str, Any]:
        """What is written down beside the finished drawings."""
        return {**asdict(self), "version": tiprctl.__version__, "complete": True}
