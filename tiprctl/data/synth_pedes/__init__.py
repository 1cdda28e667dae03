"""`synth-pedes`, the built-in data set: pedestrians drawn procedurally and described in English.

`generate` renders it in the layout of CUHK-PEDES, so that the reader of the real set reads it; `report` measures how
hard it is.
"""

from tiprctl.data.synth_pedes.oracle import DifficultyReport, report
from tiprctl.data.synth_pedes.rendering import CAPTIONS_PER_IMAGE, IMAGES_PER_PERSON, generate

__all__ = ["CAPTIONS_PER_IMAGE", "IMAGES_PER_PERSON", "DifficultyReport", "generate", "report"]
