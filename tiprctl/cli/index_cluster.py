"""`tiprctl index add --engine ray`: the images are embedded by a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from tiprctl.cli import render
from tiprctl.cli.index_session import (
    IndexOptions,
    Session,
    describe_origin,
    find_store,
    load_model,
    open_session,
    open_store,
    reading_of,
)
from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.places import absolute, is_remote, key_of

if TYPE_CHECKING:
    from tiprctl.gallery.filling.listing import ImageFile
    from tiprctl.vector_model import VectorModel

_FIRST = 1000
"""Objects that patterns are compared with before the cluster begins."""


def add_with_ray(
    options: IndexOptions, address: str | None, batch_size: int, workers: int | None, *, json: bool
) -> None:
    """Add the images that are new, or changed since they were added.

    Raises:
        UsageError: an option tells a cluster nothing, or a pattern matches no image at all of a new folder.
        As `open_session`, and as `cluster.adding.add_with_ray`.
    """
    _refuse_idle(options, workers)
    from tiprctl.gallery.cluster.adding import add_with_ray as embed
    from tiprctl.gallery.filling.adding import EmbeddingInterrupted, check_patterns
    from tiprctl.gallery.filling.bringing import begin, end
    from tiprctl.gallery.filling.origins import remember

    session, root, images, keys = _open(options)
    store, origin, model = session.store, session.origin, session.model
    reading = reading_of(batch_size, None, session.describer)
    loaded = partial(_loaded, absolute(options.model or store.identity.source), options.device)
    listing = session.images.listing if session.images else None
    begun = begin(store, origin, "add")
    unmatched = check_patterns(session.describer, keys, new=begun.outdated or not store.has_below(root))
    remember(store, begun)
    try:
        changes = embed(store, root, images, loaded, model.image_size, reading, address=address)
    except EmbeddingInterrupted as interrupt:
        render.warning(f"{interrupt}; the same command goes on from there.")
        raise
    changes.unmatched = unmatched
    if listing:
        changes.unreadable = [*listing.unreadable, *changes.unreadable]
    if not end(store, begun, origin, listing, reading, changes):
        render.warning("Images of an object store that the gallery had already keep the columns that they have.")
    session.finish(changes, json=json)


def _refuse_idle(options: IndexOptions, workers: int | None) -> None:
    """Raise a UsageError where an option would do nothing."""
    if workers is not None:
        raise UsageError(
            "Ray itself shares out the cores of its cluster", where="--workers", remedy="Leave it out, or --engine ray."
        )
    if options.follow_links is not None and is_remote(options.source):
        raise UsageError(
            "An object store has no links",
            where=options.source,
            remedy="Leave out --follow-links and --no-follow-links.",
        )


def _open(options: IndexOptions) -> tuple[Session, str, Iterable[ImageFile], Iterable[str]]:
    """The gallery with its model; the place that the images lie below, the images, and paths for the patterns."""
    if not is_remote(options.source):
        session = open_session(options)
        listing = session.images.listing
        return session, listing.root_key, listing.images, listing.known_as
    from tiprctl.gallery.cluster.sources import list_objects

    root, known = options.source.rstrip("/"), find_store(options)
    origin = describe_origin(options, known, root, root)
    model = load_model(options, known)
    describer = origin.describer(types=known.user_types if known else None)
    # What an object store holds is listed as it is taken: the first of it tells whether a pattern fits.
    images = list_objects(root)
    first = list(islice(images, _FIRST))
    keys = [key_of(root, image.path) for image in first]
    store = open_store(options, known, model, describer, keys)
    return Session(store, model, origin, describer, None, options), root, chain(first, images), keys


def _loaded(source: str, device: str | None) -> VectorModel:
    """The model, in a process of the cluster."""
    from tiprctl.vector_model import load_vector_model

    return load_vector_model(source, device=device, bulk=True)
