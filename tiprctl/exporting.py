"""Writing a model as two ONNX graphs, each checked against torch: what `tiprctl.exported` reads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import tiprctl
from tiprctl.errors import CheckError, UsageError
from tiprctl.exported import CARD, DATA_SUFFIX, FORMAT, IMAGE, PIXELS, TEXT, TOKEN_IDS, VECTORS, ExportedModel
from tiprctl.files import atomic_folder
from tiprctl.losses.similarity import unit_rows
from tiprctl.models.embedder import Embedder
from tiprctl.models.encoder import DualEncoder
from tiprctl.pixels import MEAN, STD
from tiprctl.runs import write_json
from tiprctl.tokenizer import Tokenizer
from tiprctl.vector_model import weights_stamp
from tiprctl.wordpiece import WordPieceTokenizer

TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
"""By how much a number of a unit vector may differ from torch's, by the precision of the export."""

_WEIGHTS_APART = 1024
"""Tensors of as many bytes go to the file of the weights; smaller ones stay in the graph."""
_UNIT_LENGTH = "ReduceL2"
"""The first of the operations, the last of a graph, that bring vectors to unit length."""
_REMEDIES = {
    "float32": "The installed onnxruntime and torch do not agree: upgrade them, or use the model without an export.",
    "float16": "Export it without --float16.",
}
_LOGS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime")


class TextTower(nn.Module):
    """Token ids `(B, L)`, int64, to unit vectors `(B, width)`."""

    def __init__(self, encoder: DualEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, token_ids: Tensor) -> Tensor:
        return unit_rows(self.encoder.text_features(token_ids))


class ImageTower(nn.Module):
    """Pixels `(B, H, W, 3)`, uint8, to unit vectors `(B, width)`."""

    def __init__(self, encoder: DualEncoder):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", 255 * torch.tensor(MEAN))
        self.register_buffer("std", 255 * torch.tensor(STD))

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = (pixels.float() - self.mean) / self.std
        return unit_rows(self.encoder.image_features(normalised.permute(0, 3, 1, 2)))


@dataclass(frozen=True)
class Export:
    """What was written: the folder, its files with their sizes in bytes, and how far each graph is from torch.

    `differences` are the largest of any number of a unit vector, by the graph's file.
    """

    folder: Path
    files: Mapping[str, int]
    precision: str
    differences: Mapping[str, float]

    def size(self, graph: str) -> int:
        """How many bytes a graph takes, with its weights."""
        return self.files[graph] + self.files.get(graph + DATA_SUFFIX, 0)


def export_model(
    embedder: Embedder,
    folder: Path,
    *,
    float16: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> Export:
    """Write a model, on the CPU, to `folder`, which it replaces only once both graphs have been checked.

    Args:
        float16: keep weights and intermediate results in float16; inputs and outputs stay as they are.
        tell: is told what is being done.

    Raises:
        CheckError: a graph differs from torch by more than `TOLERANCE`. UsageError: the folder holds something else.
        InputError: it cannot be written.
    """
    _refuse_others(folder)
    towers = {TEXT: TextTower(embedder.encoder).eval(), IMAGE: ImageTower(embedder.encoder).eval()}
    with atomic_folder(folder) as temporary:
        for name, tower in towers.items():
            tell(f"Writing {name}")
            _write_graph(tower, temporary / name, _batches(name, embedder)[-1], float16=float16)
        files = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        write_json(temporary / CARD, _card(embedder, "float16" if float16 else "float32") | {"files": files})
        tell("Comparing with torch")
        exported = ExportedModel(temporary)
        differences = {name: _difference(exported, name, tower, embedder) for name, tower in towers.items()}
    return Export(folder, files, exported.precision, differences)


def _refuse_others(folder: Path) -> None:
    """Refuse a folder with anything in it that an export would not replace."""
    known = {CARD, *(name + suffix for name in (TEXT, IMAGE) for suffix in ("", DATA_SUFFIX))}
    others = sorted({file.name for file in folder.iterdir()} - known) if folder.is_dir() else []
    if others:
        raise UsageError(
            f"The folder holds something else than an export: {others[0]}",
            where=folder,
            remedy="Name a folder that is new or empty (--output).",
        )


def _write_graph(tower: nn.Module, file: Path, example: np.ndarray, *, float16: bool) -> None:
    """Write a tower as an ONNX graph that takes any number of rows, and of texts any length."""
    name, axes = (TOKEN_IDS, ("batch", "length")) if file.name == TEXT else (PIXELS, ("batch",))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            tower,
            (torch.from_numpy(example),),
            dynamo=True,
            verbose=False,
            input_names=[name],
            output_names=[VECTORS],
            dynamic_shapes={name: {axis: torch.export.Dim(title) for axis, title in enumerate(axes)}},
        )
        graph = _in_float16(program.model_proto) if float16 else program.model_proto
        data = file.name + DATA_SUFFIX
        onnx.save(graph, file, save_as_external_data=True, location=data, size_threshold=_WEIGHTS_APART)


def _in_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with weights and intermediate results in float16, but for what is summed in float32.

    That are the layer norms, as in torch's towers, since squares may be too large for float16, and the unit length.
    """
    # Here alone: few ask for it.
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    nodes, (output,) = graph.graph.node, graph.graph.output
    start = [node.op_type for node in nodes].index(_UNIT_LENGTH)
    output.name = nodes[start].input[0]
    del nodes[start:]
    kept = [*DEFAULT_OP_BLOCK_LIST, "LayerNormalization"]
    half = convert_float_to_float16(graph, keep_io_types=True, op_block_list=kept)
    # The converter rounds also what comes out of operations that it leaves in float32: this one comes after it. And it
    # writes a cast once for each operation that reads it, always by the same name.
    (output,) = half.graph.output
    last = onnx.helper.make_node("LpNormalization", [output.name], [VECTORS], axis=1, p=2)
    output.name = VECTORS
    distinct = {tuple(node.output): node for node in (*half.graph.node, last)}
    del half.graph.node[:]
    half.graph.node.extend(distinct.values())
    return half


def _card(embedder: Embedder, precision: str) -> dict[str, Any]:
    """What an export says of itself."""
    return {
        "format": FORMAT,
        "fingerprint": embedder.fingerprint,
        "width": embedder.width,
        "image_size": embedder.image_size,
        "precision": precision,
        "description": embedder.description,
        "source": embedder.source,
        "weights": weights_stamp(embedder.source),
        "tokenizer": _describe(embedder.tokenizer),
        "versions": {"tiprctl": tiprctl.__version__}
        | {name: version(name) for name in ("torch", "onnx", "onnxscript")},
    }


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `ExportedModel.tokenizer` needs to make it again."""
    if isinstance(tokenizer, WordPieceTokenizer):
        return {
            "kind": "bert",
            "context_length": tokenizer.context_length,
            "vocabulary": tokenizer.vocabulary,
        }
    return {"kind": "clip", "context_length": tokenizer.context_length}


def _difference(exported: ExportedModel, name: str, tower: nn.Module, embedder: Embedder) -> float:
    """By how much any number of a graph's unit vectors differs from torch's at most.

    Raises:
        CheckError: by more than may be, or one is no number.
    """
    tolerance, worst = TOLERANCE[exported.precision], 0.0
    for batch in _batches(name, embedder):
        with torch.inference_mode():
            expected = tower(torch.from_numpy(batch)).numpy()
        difference = float(np.abs(exported.run(name, batch) - expected).max())
        # Written so that it also holds for what is no number.
        if not difference <= tolerance:
            raise CheckError(
                f"The export differs from torch by {difference:.2g}, more than {tolerance:g}; it is not kept",
                where=name,
                remedy=_REMEDIES[exported.precision],
            )
        worst = max(worst, difference)
    return worst


def _batches(name: str, embedder: Embedder) -> list[np.ndarray]:
    """Random inputs of a graph, of different sizes and lengths."""
    generator = np.random.default_rng(0)
    if name == IMAGE:
        return [generator.integers(0, 256, (size, *embedder.image_size, 3), np.uint8) for size in (1, 4, 3)]
    longest = embedder.tokenizer.context_length
    shapes = ((1, 2), (1, longest), (7, longest // 2), (4, 9))
    return [_captions(embedder.tokenizer, *shape, generator) for shape in shapes]


def _captions(tokenizer: Tokenizer, count: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of random token ids `(count, length)`, the first as long as that, the others of any length."""
    words = np.setdiff1d(np.arange(1, tokenizer.vocab_size), [tokenizer.start, tokenizer.end])
    token_ids = generator.choice(words, (count, length))
    ends = np.append(length - 1, generator.integers(1, length, count - 1))
    token_ids[:, 0] = tokenizer.start
    token_ids[np.arange(count), ends] = tokenizer.end
    return np.where(np.arange(length) <= ends[:, None], token_ids, 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block the libraries that export say nothing: what they tell of is no user's concern."""
    loggers = [logging.getLogger(name) for name in _LOGS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
