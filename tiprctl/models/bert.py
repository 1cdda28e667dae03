"""BERT (Devlin et al., 2019) as text tower, for the methods that were published with it: the model of `transformers`.

Weights come from a folder or from huggingface.co as config.json, model.safetensors and the vocabulary; nothing in them
is ever run. A checkpoint of tiprctl holds all of it, so that it needs neither again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tiprctl.config import Count, Fraction, Positive, from_dict, frozen, to_dict
from tiprctl.errors import InputError, UsageError
from tiprctl.models.registry import await_host
from tiprctl.models.tokens import Tokens, caption_masks
from tiprctl.models.weights import read_weights
from tiprctl.tokenizer import Tokenizer, clean

CONTEXT_LENGTH = 100
"""How many tokens of a caption are read, as in CFine."""
PADDING, START, END, UNKNOWN = "[PAD]", "[CLS]", "[SEP]", "[UNK]"
SIZES, WEIGHTS, VOCABULARIES = "config.json", "model.safetensors", ("vocab.txt", "tokenizer.json")
"""The files of a folder of BERT weights; of the vocabularies one is enough."""
TOWER = ("embeddings.", "encoder.")
"""What the names of the tower's tensors begin with, without `bert.`; the rest serves BERT's own tasks."""
OLD_NAMES = {"gamma": "weight", "beta": "bias"}
"""What the normalisations of weights converted from TensorFlow call their parameters."""
NO_PARAMETER = "embeddings.position_ids"
"""A table of numbers that older versions of `transformers` saved among the weights."""


@frozen
class BertSizes:
    """The sizes of a BERT, by the names of its config.json; the defaults are those of `transformers`."""

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Count
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    hidden_dropout_prob: Fraction = 0.1
    attention_probs_dropout_prob: Fraction = 0.1
    max_position_embeddings: Count = 512
    type_vocab_size: Count = 2
    layer_norm_eps: Positive = 1e-12

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} attention heads cannot share a width of {self.hidden_size}")


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer over a vocabulary: what `transformers` gives for the uncased models.

    It reads `clean(text)`, as CLIP's does, so broken Unicode and HTML entities are repaired first, and also a cased
    vocabulary reads lower case.

    Raises:
        UsageError: the extra `bert` is not installed. InputError: the vocabulary lacks one of BERT's own tokens, or its
            padding is not 0.
    """

    def __init__(self, vocabulary: Sequence[str], context_length: int, *, where: str | Path | None = None):
        ids = {token: index for index, token in enumerate(vocabulary)}
        if ids.get(PADDING) != 0 or not ids.keys() >= {START, END, UNKNOWN}:
            raise InputError(
                f"The vocabulary does not begin with {PADDING}, or lacks one of {START}, {END}, {UNKNOWN}",
                where=where,
                remedy="Give the vocabulary of a BERT.",
            )
        tokenizers = _library("tokenizers")
        self._rules = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token=UNKNOWN))
        self._rules.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        self._rules.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self.vocabulary = list(vocabulary)
        self.vocab_size = len(self.vocabulary)
        self.context_length = context_length
        self.start, self.end = ids[START], ids[END]

    def pieces(self, text: str) -> Iterator[tuple[int, list[int]]]:
        encoding = self._rules.encode(clean(text), add_special_tokens=False)
        tokens = zip(encoding.word_ids, encoding.offsets, encoding.ids)
        for _, word in groupby(tokens, key=itemgetter(0)):
            _, offsets, ids = zip(*word)
            yield offsets[0][0], list(ids)


class Bert(nn.Module):
    """A BERT that reads captions of at most 100 tokens; the global token is [CLS], the first one.

    Its weights mean something once a state dict is loaded. It has no pooler: CFine takes [CLS] as the last layer leaves
    it. In training it draws dropout from torch's global generators.

    Raises:
        UsageError: the extra `bert` is not installed. InputError: the vocabulary does not go with the sizes.
    """

    def __init__(self, sizes: BertSizes, vocabulary: Sequence[str], *, where: str | Path | None = None):
        super().__init__()
        if len(vocabulary) > sizes.vocab_size:
            raise InputError(
                f"The vocabulary has {len(vocabulary)} tokens, the model {sizes.vocab_size}",
                where=where,
                remedy="Put the vocabulary that the model was trained with beside it.",
            )
        self.sizes = sizes
        self.tokenizer = WordPieceTokenizer(vocabulary, min(CONTEXT_LENGTH, sizes.max_position_embeddings), where=where)
        transformers = _library("transformers")
        self.model = transformers.BertModel(transformers.BertConfig(**to_dict(sizes)), add_pooling_layer=False)

    @property
    def width(self) -> int:
        """How wide its tokens are."""
        return self.sizes.hidden_size

    def read(self, token_ids: Tensor, *, attention: bool = False) -> Tokens:
        """The tokens of captions `(B, L)`, with the attention of [CLS] only where it is asked for.

        Raises:
            UsageError: the rows are longer than the context.
        """
        length = token_ids.shape[1]
        if length > self.tokenizer.context_length:
            raise UsageError(f"Captions of {length} tokens exceed the context of {self.tokenizer.context_length}")
        visible, words = caption_masks((token_ids == self.tokenizer.end).int().argmax(dim=1), length)
        read = self.model(token_ids, attention_mask=visible.long(), output_hidden_states=attention)
        return Tokens(
            read.last_hidden_state,
            place=torch.zeros_like(token_ids[:, 0]),
            visible=visible,
            attention=self._gaze(read.hidden_states[-2], visible) if attention else None,
            words=words,
            context=self.tokenizer.context_length,
        )

    @torch.no_grad()
    def _gaze(self, x: Tensor, visible: Tensor) -> Tensor:
        """How much [CLS] looks at each of `x` (B, L, W), which enters the last layer: `(B, L)`, averaged over the heads.

        One row of the attention, before its dropout; `transformers` would give up its fast attention for all rows.
        """
        attention = self.model.encoder.layer[-1].attention.self
        heads = self.sizes.num_attention_heads
        query = attention.query(x[:, :1]).unflatten(2, (heads, -1)).transpose(1, 2)
        key = attention.key(x).unflatten(2, (heads, -1)).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)).squeeze(2).float() * query.shape[-1] ** -0.5
        return scores.masked_fill(~visible[:, None], -torch.inf).softmax(dim=2).mean(dim=1)

    def header(self) -> dict[str, Any]:
        """What `from_header` needs to make it again, as JSON can hold it: sizes and vocabulary."""
        return {"sizes": to_dict(self.sizes), "vocabulary": self.tokenizer.vocabulary}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Bert:
        """The BERT that a checkpoint's header describes, before its weights are loaded."""
        return cls(from_dict(BertSizes, header["sizes"]), header["vocabulary"])


def load_bert(source: str) -> Bert:
    """A BERT with published weights, from a folder or by its name on huggingface.co, as in `bert-base-uncased`.

    Raises:
        UsageError: the extra `bert` is not installed.
        InputError: there is no such folder, nothing can be downloaded, or the files are not those of a BERT.
    """
    _library("transformers")
    folder = _find_folder(source)
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


def _ours(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors by the names of a `BertModel`, whatever task the model was saved with."""
    for name, tensor in tensors.items():
        stem, _, leaf = name.removeprefix("bert.").rpartition(".")
        yield f"{stem}.{OLD_NAMES.get(leaf, leaf)}", tensor


def _find_folder(source: str) -> Path:
    """The folder with the files, downloaded where `source` is a name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")) or len(folder.parts) > 2 or folder.exists():
        raise InputError(
            "There is no such folder of BERT weights",
            where=folder,
            remedy=f"Name a folder with {SIZES}, {WEIGHTS} and {VOCABULARIES[0]}, or a model on huggingface.co.",
        )
    return _cached(source) or _download(source)


def _cached(name: str) -> Path | None:
    """The folder in the hub's cache, where an earlier download put all that is needed; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    files = {file: try_to_load_from_cache(name, file) for file in (SIZES, WEIGHTS, *VOCABULARIES)}
    found = {file for file, path in files.items() if isinstance(path, str)}
    complete = {SIZES, WEIGHTS} <= found and found.intersection(VOCABULARIES)
    return Path(files[SIZES]).parent if complete else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HFValidationError

    try:
        await_host(ENDPOINT)
        return Path(snapshot_download(name, allow_patterns=[SIZES, WEIGHTS, *VOCABULARIES]))
    except (OSError, HFValidationError) as error:  # what the hub refuses is an OSError too
        raise InputError(
            f"The BERT weights {name} are not on this machine and cannot be downloaded",
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
            remedy=f"It needs {SIZES}, {WEIGHTS} and {VOCABULARIES[0]}, as save_pretrained of transformers writes them.",
        )
    return folder / name


def _damaged(file: Path) -> InputError:
    return InputError(f"The {file.name} of the BERT weights is damaged", where=file, remedy="Fetch it again.")


def _library(name: str) -> ModuleType:
    """A library of the extra `bert`, imported where it is needed alone: it takes seconds, and need not be there."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            "BERT needs a library that is not installed",
            where=name,
            remedy="Install it: pip install 'tiprctl[bert]', or train with --text-encoder clip.",
        ) from error
