"""Pure functions of tensors, one file each: no configuration, no device, no logging, no change to their inputs."""

from tiprctl.losses.cmpc import cmpc_loss
from tiprctl.losses.cmpm import cmpm_loss
from tiprctl.losses.diversity import diversity_loss
from tiprctl.losses.identity import identity_loss
from tiprctl.losses.itc import itc_loss
from tiprctl.losses.mlm import mlm_loss
from tiprctl.losses.ranking import ranking_loss
from tiprctl.losses.restoration import restoration_loss
from tiprctl.losses.sdm import sdm_loss
from tiprctl.losses.similarity import cosine_similarity
from tiprctl.losses.triplet import triplet_loss

__all__ = [
    "cmpc_loss",
    "cmpm_loss",
    "cosine_similarity",
    "diversity_loss",
    "identity_loss",
    "itc_loss",
    "mlm_loss",
    "ranking_loss",
    "restoration_loss",
    "sdm_loss",
    "triplet_loss",
]
