"""Published CLIP weights by name: open_clip's registry, its caches and its downloads."""

from __future__ import annotations

from contextlib import suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tiprctl.errors import InputError, UsageError, unknown_name
from tiprctl.models.clip import QUICK_GELU_SUFFIX

NETWORK_TIMEOUT = 10.0
"""Seconds to wait for a host to answer."""


def find_pretrained(model_name: str, tag: str) -> Path:
    """The file of published weights, from open_clip's caches or downloaded into them.

    Raises:
        UsageError: open_clip knows no such model or tag (the tags are listed).
        InputError: the file is not there and cannot be downloaded; says where to put it.
    """
    from open_clip.pretrained import download_pretrained

    entry = registry_entry(model_name, tag)
    by_hand = Path.home() / ".cache" / "clip" / PurePosixPath(entry.get("url") or "").name
    try:
        if by_hand.is_file():  # open_clip checks its hash
            return Path(download_pretrained(entry, prefer_hf_hub=False))
        return _cached_download(entry) or Path(download_pretrained(_reachable(entry)))
    except (OSError, RuntimeError, HTTPException) as error:
        place = f" Or put it at {by_hand}." if entry.get("url") else ""
        name = model_name.removesuffix(QUICK_GELU_SUFFIX) + QUICK_GELU_SUFFIX * entry.get("quick_gelu", False)
        raise InputError(
            f"The weights {tag} of {model_name} are not on this machine and cannot be downloaded",
            where=entry.get("url") or f"https://huggingface.co/{entry['hf_hub'].rstrip('/')}",
            remedy=f"Fetch them from there on a machine with network, then give the file: for train, --model {name} "
            f"--pretrained FILE; for eval and query, the model {name}/FILE.{place}",
        ) from error


def registry_entry(model_name: str, tag: str) -> dict[str, Any]:
    """What open_clip's registry says of the weights: their address and whether they want QuickGELU.

    Raises:
        UsageError: open_clip knows no such model or tag; the tags are listed.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(model_name)
    if not tags:
        raise UsageError(
            f"There are no published weights of {model_name}",
            remedy="Start from random weights (--pretrained none) or give a file (--pretrained FILE).",
        )
    entry = get_pretrained_cfg(model_name, tag)
    if not entry:
        raise unknown_name(f"pretrained tag of {model_name}", tag, tags)
    return entry


def _cached_download(entry: dict[str, Any]) -> Path | None:
    """The file that the hub's cache holds from an earlier download; asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = entry.get("hf_hub", "").rpartition("/")
    for candidate in (name,) if name else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        file = try_to_load_from_cache(repository, candidate) if repository else None
        if isinstance(file, str):
            return Path(file)
    return None


def _reachable(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, once its host answers; raises as `await_host`."""
    from huggingface_hub.constants import ENDPOINT

    await_host(ENDPOINT if entry.get("hf_hub") else entry["url"])
    return entry


def await_host(address: str) -> None:
    """Return once the host answers: the hub itself would try for a minute, with a warning each time.

    Raises:
        OSError: it does not answer in time.
    """
    # Any answer will do, even a refusal.
    with suppress(HTTPError), urlopen(Request(address, method="HEAD"), timeout=NETWORK_TIMEOUT):
        pass
