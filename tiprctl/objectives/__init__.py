"""The objectives by name: `--aux NAME` is a look-up in this table. A new one is a file and a line here."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from tiprctl.errors import unknown_name

if TYPE_CHECKING:
    from tiprctl.objectives.base import Objective

# Paths instead of classes: listing the choices must not import torch.
OBJECTIVES: dict[str, str | type[Objective]] = {
    "sdm": "tiprctl.objectives.sdm:SimilarityDistributionMatching",
    "itc": "tiprctl.objectives.itc:ImageTextContrast",
    "id": "tiprctl.objectives.identity:IdentityClassification",
    "triplet": "tiprctl.objectives.triplet:CrossModalTriplet",
    "tir": "tiprctl.objectives.tir:TextGuidedRestoration",
    "mlm": "tiprctl.objectives.mlm:MaskedLanguageModelling",
    "mgf": "tiprctl.objectives.mgf:MultiGrainedFeatures",
    "cfr": "tiprctl.objectives.cfr:CrossGrainedRefinement",
    "fcd": "tiprctl.objectives.fcd:CorrespondenceDiscovery",
    "scvd": "tiprctl.objectives.scvd:DynamicFocusAlignment",
}


def find_objective(name: str) -> type[Objective]:
    """The objective's class.

    Raises:
        UsageError: there is none of that name; the choices are listed.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    entry = OBJECTIVES[name]
    return resolve_name(entry) if isinstance(entry, str) else entry
