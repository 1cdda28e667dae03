"""Heads by name: what turns a tower's tokens into the features that are compared and indexed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiprctl.config import from_dict
from tiprctl.errors import unknown_name
from tiprctl.models.heads.base import Head
from tiprctl.models.heads.division import VisualDivision
from tiprctl.models.heads.global_token import GlobalToken
from tiprctl.models.heads.salient_parts import SalientParts

HEADS: dict[str, type[Head]] = {head.name: head for head in (GlobalToken, SalientParts, VisualDivision)}


def build_head(name: str, options: Mapping[str, Any], embed_dim: int) -> Head:
    """The head of that name for towers of width `embed_dim`, with fresh weights from torch's global generator.

    Raises:
        UsageError: there is no such head (the choices are listed), or its options are wrong.
    """
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    kind = HEADS[name]
    return kind(from_dict(kind.Config, dict(options), where=f"head {name}"), embed_dim)
