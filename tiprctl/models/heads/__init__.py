"""Heads: what turns a tower's tokens into the features that are compared and indexed."""

from tiprctl.errors import unknown_name
from tiprctl.models.heads.global_token import GlobalToken

HEADS = {GlobalToken.name: GlobalToken}


def build_head(name: str, embed_dim: int) -> GlobalToken:
    """The head of that name for towers of width `embed_dim`.

    Raises:
        UsageError: there is no such head; the choices are listed.
    """
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    return HEADS[name](embed_dim)
