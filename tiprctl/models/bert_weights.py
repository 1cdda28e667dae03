"""Published weights of BERT: config.json, model.safetensors and the vocabulary, of a folder or from huggingface.co.

Nothing in these files is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from tiprctl.config import from_dict
from tiprctl.errors import InputError
from tiprctl.models.bert import Bert, BertSizes
from tiprctl.models.registry import await_host
from tiprctl.models.weights import read_weights
from tiprctl.wordpiece import library

SIZES, WEIGHTS, VOCABULARIES = "config.json", "model.safetensors", ("vocab.txt", "tokenizer.json")
"""The files of a folder of BERT weights; of the vocabularies one is enough."""
SIZES_ALONE = ((SIZES,),)
ALL = (*SIZES_ALONE, (WEIGHTS,), VOCABULARIES)
"""What is needed of these files: one of each group."""
TOWER = ("embeddings.", "encoder.")
"""What the names of the tower's tensors begin with, without `bert.`; the rest serves BERT's own tasks."""
OLD_NAMES = {"gamma": "weight", "beta": "bias"}
"""What the normalisations of weights converted from TensorFlow call their parameters."""
NO_PARAMETER = "embeddings.position_ids"
"""A table of numbers that older versions of `transformers` saved among the weights."""


def load_bert(source: str) -> Bert:
    """A BERT with published weights, from a folder or by its name on huggingface.co, as in `bert-base-uncased`.

    Raises:
        UsageError: the extra `bert` is not installed.
        InputError: there is no such folder, nothing can be downloaded, or the files are not those of a BERT.
    """
    library("transformers")
    folder = _find_folder(source, ALL)
    sizes = _read_sizes(folder / SIZES)
    bert = Bert(sizes, _read_vocabulary(folder), where=folder)
    tensors = {
        name: tensor
        for name, tensor in _ours(read_weights(_present(folder, WEIGHTS)).tensors)
        if name.startswith(TOWER) and name != NO_PARAMETER
    }
    try:
        bert.model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"The weights are not those of the BERT that {SIZES} describes: {reason}",
            where=folder / WEIGHTS,
            remedy="Fetch the folder again, or name another.",
        ) from error
    return bert


def find_sizes(source: str) -> BertSizes:
    """The sizes of a BERT by what `load_bert` takes, before its weights: only config.json is downloaded.

    Raises:
        UsageError, InputError: as `load_bert`.
    """
    library("transformers")
    return _read_sizes(_find_folder(source, SIZES_ALONE) / SIZES)


def _ours(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors by the names of a `BertModel`, whatever task the model was saved with."""
    for name, tensor in tensors.items():
        stem, _, leaf = name.removeprefix("bert.").rpartition(".")
        yield f"{stem}.{OLD_NAMES.get(leaf, leaf)}", tensor


def _find_folder(source: str, needed: Sequence[Sequence[str]]) -> Path:
    """The folder with the files, one of each group in `needed`, downloaded where `source` is a name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")) or len(folder.parts) > 2 or folder.exists():
        raise InputError(
            "There is no such folder of BERT weights",
            where=folder,
            remedy=f"Name a folder with {SIZES}, {WEIGHTS} and {VOCABULARIES[0]}, or a model on huggingface.co.",
        )
    return _cached(source, needed) or _download(source, needed)


def _cached(name: str, needed: Sequence[Sequence[str]]) -> Path | None:
    """The folder in the hub's cache, where an earlier download put all that is needed; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    asked = ([try_to_load_from_cache(name, file) for file in group] for group in needed)
    found = [next((path for path in group if isinstance(path, str)), None) for group in asked]
    return Path(found[0]).parent if all(found) else None


def _download(name: str, needed: Sequence[Sequence[str]]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HFValidationError

    try:
        await_host(ENDPOINT)
        return Path(snapshot_download(name, allow_patterns=list(chain.from_iterable(needed))))
    except (OSError, HFValidationError) as error:  # what the hub refuses is an OSError too
        raise InputError(
            f"There is no folder {name} here, and BERT weights of that name are not in the hub's cache and cannot be "
            "downloaded",
            where=f"{ENDPOINT}/{name}",
            remedy=f"Check the name, or fetch {SIZES}, {WEIGHTS} and {VOCABULARIES[0]} from there on a machine with "
            "network, then give their folder: --text-encoder bert:FOLDER",
        ) from error


def _read_sizes(file: Path) -> BertSizes:
    """The sizes that config.json gives.

    Raises:
        InputError: it is missing, damaged or of another kind of model. UsageError: a size is wrong.
    """
    values = _read_json(file)
    kind = values.get("model_type", "bert")
    if kind != "bert":
        raise InputError(
            f"The weights are those of a {kind}, not of a BERT",
            where=file,
            remedy="Name a BERT, such as bert-base-uncased.",
        )
    known = BertSizes.__dataclass_fields__
    return from_dict(BertSizes, {key: value for key, value in values.items() if key in known}, where=str(file))


def _read_vocabulary(folder: Path) -> list[str]:
    """The tokens in the order of their ids, from vocab.txt, or else from tokenizer.json.

    Raises:
        InputError: there is neither, or it is damaged.
    """
    plain, rules = (folder / name for name in VOCABULARIES)
    if plain.is_file() or not rules.is_file():
        try:
            return _present(folder, plain.name).read_text(encoding="utf-8").rstrip("\n").split("\n")
        except UnicodeDecodeError as error:
            raise _damaged(plain) from error
    model = _read_json(rules).get("model")
    ids = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
        raise _damaged(rules)
    return sorted(ids, key=ids.get)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(_present(file.parent, file.name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(file) from error
    if not isinstance(values, dict):
        raise _damaged(file)
    return values


def _present(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise InputError(
            f"The folder of BERT weights lacks {name}",
            where=folder,
            remedy=f"It needs {SIZES}, {WEIGHTS} and {VOCABULARIES[0]}, "
            "as save_pretrained of transformers writes them.",
        )
    return folder / name


def _damaged(file: Path) -> InputError:
    return InputError(f"The {file.name} of the BERT weights is damaged", where=file, remedy="Fetch it again.")
