"""The model of a gallery, where the user names none: one rule for all commands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from tiprctl.errors import InputError, UsageError

if TYPE_CHECKING:
    from tiprctl.gallery.keeping.schema import ModelIdentity
    from tiprctl.vector_model import VectorModel


def own_model(identity: ModelIdentity, load: Callable[[str | None], VectorModel]) -> VectorModel:
    """The model that a gallery was indexed with: by the name that it had then, else the newest run if it is that one.

    Args:
        load: from a model's name to the model; None is the newest run.

    Raises:
        UsageError: there is no such model any more.
    """
    from tiprctl.runs import latest_run

    for source in (identity.source, None) if latest_run() else (identity.source,):
        with suppress(InputError):
            model = load(source)
            if model.fingerprint == identity.fingerprint:
                return model
    raise UsageError(
        f"The model that the gallery was indexed with is no longer there, or has changed: {identity.description}",
        where=identity.source,
        remedy="Name where it is now (--model), or index the images again in a new gallery.",
    )
